//! Carries out a recipe with mmdebstrap: packages from a Debian mirror, then the set-up script inside the new root.
//! Progress is counted from what dpkg says it does, so a bar can show how far it really is.
//! The result is added to the layer store and remembered by the recipe's fingerprint.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use layers::{LayerDigest, LayerStore};

use crate::{Recipe, TemplateError};

/// Lines of the builder's output that an error quotes.
const QUOTED_LINES: usize = 15;

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: String,
    /// Steps done.
    pub done: u64,
    /// Steps in all, as far as known; 0 before that.
    pub total: u64,
}

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
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--verbose", "--mode=root", "--variant=minbase", "--format=directory", "--skip=check/qemu"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        ])
        .arg(format!("--include={}", bootstrap.packages.join(",")))
        .arg(format!("--customize-hook={copy}"))
        .arg("--customize-hook=chroot \"$1\" sh /setup.sh")
        .arg("--customize-hook=rm \"$1/setup.sh\"")
        .arg(&bootstrap.suite)
        .arg(tree)
        .arg(&bootstrap.mirror)
        .env("SOURCE_DATE_EPOCH", "1735689600")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            TemplateError::MissingProgram { program: "mmdebstrap", package: "mmdebstrap" }
        }
        _ => TemplateError::Io { path: "mmdebstrap".into(), source },
    })?;
    let output = child.stderr.take().expect("piped above");
    let mut follow = Follow::default();
    for line in BufReader::new(output).split(b'\n') {
        let Ok(line) = line else { break };
        if let Some(progress) = follow.line(&String::from_utf8_lossy(&line)) {
            report(progress);
        }
    }
    let status = child.wait().map_err(|source| TemplateError::Io { path: "mmdebstrap".into(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(TemplateError::Build { name: recipe.name().to_owned(), output: follow.last.join("\n") })
}

/// Reads progress out of apt's and dpkg's lines.
#[derive(Debug, Default)]
struct Follow {
    stage: String,
    done: u64,
    total: u64,
    last: Vec<String>,
}

impl Follow {
    fn line(&mut self, line: &str) -> Option<Progress> {
        let line = line.trim();
        if self.last.len() == QUOTED_LINES {
            self.last.remove(0);
        }
        self.last.push(line.to_owned());
        // "0 upgraded, 321 newly installed, 0 to remove": each package is unpacked, then set up.
        if let Some((_, rest)) = line.split_once("upgraded, ") {
            let count: u64 = rest.split(' ').next()?.parse().ok()?;
            self.total += 2 * count;
        } else if let Some(stage) = line.strip_prefix("I: ") {
            let stage = match stage {
                _ if stage.starts_with("skipping") => return None,
                _ if stage.starts_with("running --customize-hook") => "setting up",
                _ => stage.trim_end_matches('.'),
            };
            stage.clone_into(&mut self.stage);
        } else if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            self.done = (self.done + 1).min(self.total);
        } else {
            return None;
        }
        Some(Progress { stage: self.stage.clone(), done: self.done, total: self.total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_packages_as_dpkg_names_them() {
        let mut follow = Follow::default();
        assert_eq!(follow.line("I: installing packages...").unwrap().stage, "installing packages");
        assert_eq!(follow.line("0 upgraded, 3 newly installed, 0 to remove").unwrap().total, 6);
        follow.line("Unpacking a (1) ...");
        assert_eq!(follow.line("Setting up a (1) ...").unwrap().done, 2);
        assert_eq!(follow.line("anything else"), None);
        assert_eq!(
            follow.line("I: running --customize-hook in shell: sh -c 'x'").unwrap().stage,
            "setting up"
        );
    }

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
