//! Recipes in `templates/` that a server builds: for each a directory under `target/` with the files that its Dockerfile copies.
//! Recipes that are named in [`PROGRAMS`] get a program of ours; the others are copied from the repository unchanged.

use std::fs;
use std::path::PathBuf;

use crate::build::SANDBOX_TARGET;
use crate::run::{self, Outcome};

/// Recipes with a program of ours, and the package that it is built from.
const PROGRAMS: [(&str, &str); 2] = [("code-interpreter-v1", "interpreter"), ("mcp-gateway", "mcp-gateway")];

/// Makes a recipe's directory complete and returns its path.
pub(crate) fn staged(name: &str) -> Outcome<PathBuf> {
    let recipe = run::root().join("templates").join(name);
    let dir = run::target().join("templates").join(name);
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(&dir).map_err(failed)?;
    let entries = fs::read_dir(&recipe).map_err(|error| format!("{}: {error}", recipe.display()))?;
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        fs::copy(&path, dir.join(path.file_name().unwrap_or_default())).map_err(failed)?;
    }
    if let Some((_, package)) = PROGRAMS.iter().find(|(recipe, _)| *recipe == name) {
        fs::copy(program(package)?, dir.join(package)).map_err(failed)?;
    }
    Ok(dir)
}

/// Builds a program for sandboxes; returns its path.
fn program(package: &str) -> Outcome<PathBuf> {
    run::cargo(["build", "--release", "--package", package, "--target", SANDBOX_TARGET]).run()?;
    Ok(run::target().join(SANDBOX_TARGET).join("release").join(package))
}

/// `cargo xtask template <name>`: has the server that runs on this machine build a recipe.
pub(crate) fn build(words: &[String]) -> Outcome {
    let Some((name, rest)) = words.split_first() else {
        return Err("usage: cargo xtask template <name of a directory in templates/> [words for cofferdam template build]".to_owned());
    };
    crate::setup::for_running()?;
    let server = crate::build::release("quick")?;
    run::new(server).args(["template", "build"]).arg(staged(name)?).args(rest).run()
}
