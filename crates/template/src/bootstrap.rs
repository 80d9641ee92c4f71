//! Carries out a recipe: packages from a Debian mirror, then the set-up script inside the new root.
//! The result is added to the layer store and remembered by the recipe's fingerprint.
//! What is in the store is not built again.

use std::fs;
use std::path::Path;

use layers::{LayerDigest, LayerStore};

use crate::mmdebstrap::{self, Progress};
use crate::{Recipe, TemplateError};

/// A finished build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Its one layer.
    pub layer: LayerDigest,
    /// Whether it was there already.
    pub cached: bool,
}

/// Builds a recipe's layer, unless the store has it. Blocks for about a minute.
///
/// # Errors
/// mmdebstrap is missing or fails; its last words are in the error.
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
    run(recipe, &tree, &script, report)?;
    report(Progress { stage: "naming the layer by its content".into(), done: 1, total: 1 });
    let layer = store.add(&staging)?;
    store.remember_recipe(recipe.fingerprint(), &layer)?;
    Ok(Built { layer, cached: false })
}

fn write(path: &Path, text: &str) -> Result<(), TemplateError> {
    fs::write(path, text).map_err(|source| TemplateError::Io { path: path.to_owned(), source })
}

fn run(
    recipe: &Recipe,
    tree: &Path,
    script: &Path,
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
        .arg(format!("--customize-hook={copy}"))
        .arg("--customize-hook=chroot \"$1\" sh /setup.sh")
        .arg("--customize-hook=rm \"$1/setup.sh\"")
        .arg(&bootstrap.suite)
        .arg(tree)
        .arg(&bootstrap.mirror);
    mmdebstrap::run(command, recipe.name(), report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_recipe_quotes_the_builder_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let mut recipe = Recipe::base().unwrap();
        recipe.file.bootstrap.suite = "no-such-suite".into();
        recipe.file.bootstrap.mirror = "http://127.0.0.1:1/debian".into();
        let error = build(&recipe, &store, &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, TemplateError::Build { .. } | TemplateError::MissingProgram { .. }),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    }
}
