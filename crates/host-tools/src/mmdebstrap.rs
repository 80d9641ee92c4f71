//! Runs mmdebstrap, which unpacks Debian packages into a directory, and reports its progress by counting the packages in dpkg's
//! output. The host's own packages are neither used nor changed.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::HostToolError;

/// Number of output lines that an error quotes.
const QUOTED_LINES: usize = 15;

/// Progress of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The current step, for people.
    pub stage: String,
    /// Number of finished steps.
    pub done: u64,
    /// Number of all steps, as far as known; 0 before that.
    pub total: u64,
}

/// Returns a command that unpacks `packages` as the mmdebstrap variant `variant`. The caller adds suite, target directory and mirror, in
/// this order.
#[must_use]
pub fn command(variant: &str, packages: &[impl AsRef<str>]) -> Command {
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

/// Runs the command until it ends, calling `report` with its progress. `name` is what is being built, for errors.
///
/// # Errors
/// mmdebstrap is not installed or fails; its last lines of output are in the error.
pub fn run(mut command: Command, name: &str, report: &mut dyn FnMut(Progress)) -> Result<(), HostToolError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            HostToolError::MissingProgram { program: "mmdebstrap", package: "mmdebstrap" }
        }
        _ => HostToolError::Io { path: "mmdebstrap".into(), source },
    })?;
    let output = child.stderr.take().expect("piped above");
    let mut parser = OutputParser::default();
    for line in BufReader::new(output).split(b'\n') {
        let Ok(line) = line else { break };
        if let Some(progress) = parser.line(&String::from_utf8_lossy(&line)) {
            report(progress);
        }
    }
    let status = child.wait().map_err(|source| HostToolError::Io { path: "mmdebstrap".into(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(HostToolError::Mmdebstrap { name: name.to_owned(), output: parser.last.join("\n") })
}

/// Computes progress from apt's and dpkg's output.
#[derive(Debug, Default)]
struct OutputParser {
    stage: String,
    done: u64,
    total: u64,
    /// The last [`QUOTED_LINES`] lines.
    last: Vec<String>,
}

impl OutputParser {
    /// Takes a line of output; returns the progress if the line changes it.
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
        let mut parser = OutputParser::default();
        assert_eq!(parser.line("I: installing packages...").unwrap().stage, "installing packages");
        assert_eq!(parser.line("0 upgraded, 3 newly installed, 0 to remove").unwrap().total, 6);
        parser.line("Unpacking a (1) ...");
        assert_eq!(parser.line("Setting up a (1) ...").unwrap().done, 2);
        assert_eq!(parser.line("anything else"), None);
        assert_eq!(
            parser.line("I: running --customize-hook in shell: sh -c 'x'").unwrap().stage,
            "setting up"
        );
    }
}
