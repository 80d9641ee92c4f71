//! Recipes in `templates/` that a server builds: for each a directory under `target/` with the files that its Dockerfile copies.
//! The code interpreter's gets our interpreter's binary; the others are copied from the repository unchanged.
//! Certificate authorities that only this machine trusts are passed on to sandboxes, or package managers in them would fail behind a proxy.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// Writes the certificate authorities that this machine trusts beyond its distribution's to a file; returns its path, or `None` if there are
/// none.
pub(crate) fn own_authorities() -> Outcome<Option<PathBuf>> {
    let bundle = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    let mut known = BTreeSet::new();
    distribution(Path::new("/usr/share/ca-certificates"), &mut known);
    let own: Vec<String> = certificates(&bundle).filter(|one| !known.contains(one)).collect();
    if own.is_empty() || known.is_empty() {
        return Ok(None);
    }
    let path = run::target().join("own-authorities.pem");
    fs::write(&path, own.join("\n") + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(path))
}

/// Adds the certificates below a directory to `known`.
fn distribution(dir: &Path, known: &mut BTreeSet<String>) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            distribution(&path, known);
        } else {
            known.extend(certificates(&fs::read_to_string(path).unwrap_or_default()));
        }
    }
}

/// The PEM blocks in a text.
fn certificates(text: &str) -> impl Iterator<Item = String> + '_ {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = text.split_inclusive(END).filter(|part| part.ends_with(END));
    parts.filter_map(|part| Some(part[part.find("-----BEGIN CERTIFICATE-----")?..].to_owned()))
}
