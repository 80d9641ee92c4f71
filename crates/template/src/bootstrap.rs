//! Builds a recipe's layer: unpacks its packages from a Debian mirror, runs its setup script inside the new root, adds the result to
//! the layer store and records it there under the recipe's fingerprint, so that the same recipe is not built again.

use std::fs;
use std::path::Path;

use host_tools::mmdebstrap::{self, Progress};
use layers::{LayerDigest, LayerStore};

use crate::{Recipe, TemplateError};

/// A built recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The only layer.
    pub layer: LayerDigest,
    /// Whether the store had it already.
    pub cached: bool,
}

/// Builds a recipe's layer, or returns the one that the store has. Blocks for about a minute.
///
/// # Errors
/// mmdebstrap is missing or fails (its last lines of output are in the error), or the store cannot be written.
pub fn build(
    recipe: &Recipe,
    store: &LayerStore,
    report: &mut dyn FnMut(Progress),
) -> Result<Built, TemplateError> {
    if let Some(layer) = store.by_recipe(recipe.fingerprint()) {
        return Ok(Built { layer, cached: true });
    }
    let staging = store.stage()?;
    let tree = staging.path();
    let script = tree.with_file_name("setup.sh");
    write(&script, &recipe.setup)?;
    let mut programs = Vec::new();
    for (number, (to, content)) in recipe.programs.iter().enumerate() {
        let from = tree.with_file_name(format!("program-{number}"));
        write(&from, content)?;
        programs.push(format!("install -D -m 0755 {} \"$1{to}\"", from.display()));
    }
    run(recipe, &tree, &script, &programs, report)?;
    report(Progress { stage: "naming the layer by its content".into(), done: 1, total: 1 });
    let layer = store.add(&staging)?;
    store.remember_recipe(recipe.fingerprint(), &layer)?;
    Ok(Built { layer, cached: false })
}

fn write(path: &Path, text: &str) -> Result<(), TemplateError> {
    fs::write(path, text).map_err(|source| TemplateError::Io { path: path.to_owned(), source })
}

/// Unpacks the packages into `tree`, and runs the commands that install programs and the setup script there.
fn run(
    recipe: &Recipe,
    tree: &Path,
    script: &Path,
    programs: &[String],
    report: &mut dyn FnMut(Progress),
) -> Result<(), TemplateError> {
    let bootstrap = &recipe.file.bootstrap;
    let copy = format!("cp {} \"$1/setup.sh\"", script.display());
    let mut command = mmdebstrap::command("minbase", &bootstrap.packages);
    command
        .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        ])
        .args(programs.iter().map(|install| format!("--customize-hook={install}")))
        .arg(format!("--customize-hook={copy}"))
        .arg("--customize-hook=chroot \"$1\" sh /setup.sh")
        .arg("--customize-hook=rm \"$1/setup.sh\"")
        .arg(&bootstrap.suite)
        .arg(tree)
        .arg(&bootstrap.mirror);
    Ok(mmdebstrap::run(command, recipe.name(), report)?)
}

#[cfg(test)]
mod tests {
    use host_tools::HostToolError;

    use super::*;

    #[test]
    fn a_failed_build_leaves_nothing_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let mut recipe = Recipe::base().unwrap();
        recipe.file.bootstrap.suite = "no-such-suite".into();
        recipe.file.bootstrap.mirror = "http://127.0.0.1:1/debian".into();
        let error = build(&recipe, &store, &mut |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                TemplateError::Bootstrap(
                    HostToolError::Mmdebstrap { .. } | HostToolError::MissingProgram { .. }
                )
            ),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    }
}
