//! Runs mmdebstrap, which unpacks Debian packages into a directory.
//! Progress is counted from what dpkg says it does, so a bar can show how far it really is.
//! The host's own packages are neither used nor changed.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::TemplateError;

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

/// A command that unpacks `packages` as `variant`; suite, target and mirror are still to be added, in this order.
pub(crate) fn command(variant: &str, packages: &[impl AsRef<str>]) -> Command {
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--verbose", "--mode=root", "--format=directory", "--skip=check/qemu"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={}", packages.join(",")))
        .env("SOURCE_DATE_EPOCH", "1735689600");
    command
}

/// Runs it for `name` to its end.
pub(crate) fn run(
    mut command: Command,
    name: &str,
    report: &mut dyn FnMut(Progress),
) -> Result<(), TemplateError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
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
    Err(TemplateError::Build { name: name.to_owned(), output: follow.last.join("\n") })
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
}
