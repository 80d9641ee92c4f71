//! Recipes in `templates/` that a server builds: for each a directory under `target/` with the files that its Dockerfile copies.
//! The code interpreter's gets our interpreter's binary; the others are copied from the repository unchanged.

use std::fs;
use std::path::PathBuf;

use crate::build::SANDBOX_TARGET;
use crate::run::{self, Outcome};

const INTERPRETER: &str = "code-interpreter-v1";

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
    if name == INTERPRETER {
        let binary = interpreter()?;
        fs::copy(binary, dir.join("interpreter")).map_err(failed)?;
    }
    Ok(dir)
}

/// Builds the interpreter; returns its path.
fn interpreter() -> Outcome<PathBuf> {
    let mut build =
        run::cargo(["build", "--release", "--package", "interpreter", "--target", SANDBOX_TARGET]);
    build.run()?;
    Ok(run::target().join(SANDBOX_TARGET).join("release/interpreter"))
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
