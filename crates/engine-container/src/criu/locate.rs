//! [`Criu`]: a private copy of CRIU with its libraries, installed by `cofferdam setup criu`.
//! Debian 12's 3.17 and every release before 4.2 fail on current kernels, so an older one is refused.
//! It is run through the copy's own loader, so none of the host's libraries is used.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// First release whose dumps work on Linux 6.16 and newer.
const MIN_VERSION: (u32, u32) = (4, 2);

/// The program, below the prefix.
const PROGRAM: &str = "usr/sbin/criu";

/// An installed CRIU.
#[derive(Debug, Clone)]
pub struct Criu {
    prefix: PathBuf,
    /// Directory of its libraries and their loader, below the prefix.
    libraries: PathBuf,
    loader: &'static str,
    version: String,
    timeout: Duration,
}

/// How long CRIU may be silent where nothing else is configured.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

impl Criu {
    /// Finds CRIU in `prefix`, an unpacked Debian tree.
    ///
    /// # Errors
    /// What is missing or too old, as a text for the operator.
    pub fn find(prefix: &Path) -> Result<Self, String> {
        let (triplet, loader) = if cfg!(target_arch = "aarch64") {
            ("aarch64-linux-gnu", "ld-linux-aarch64.so.1")
        } else {
            ("x86_64-linux-gnu", "ld-linux-x86-64.so.2")
        };
        // It will be run in another working directory.
        let prefix =
            &std::path::absolute(prefix).map_err(|error| format!("{}: {error}", prefix.display()))?;
        let mut criu = Self {
            prefix: prefix.clone(),
            libraries: Path::new("usr/lib").join(triplet),
            loader,
            version: String::new(),
            timeout: DEFAULT_TIMEOUT,
        };
        let program = prefix.join(PROGRAM);
        if !program.exists() {
            return Err(format!("no CRIU in {}", prefix.display()));
        }
        let output = criu.command().arg("--version").output();
        let output = output.map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("").trim();
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < MIN_VERSION {
            let (major, minor) = MIN_VERSION;
            return Err(format!("CRIU in {} is {version:?}; {major}.{minor} is needed", prefix.display()));
        }
        criu.version = version.to_owned();
        Ok(criu)
    }

    /// Returns its version, such as `4.2.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Sets how long CRIU may be silent, beside the time that the size of the memory adds. After that it is taken to hang, and is
    /// killed.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Returns a command that runs it, without arguments.
    pub(crate) fn command(&self) -> Command {
        self.command_below(&self.prefix)
    }

    /// Returns a command that runs it, without arguments, where its prefix is at `prefix`.
    pub(crate) fn command_below(&self, prefix: &Path) -> Command {
        let libraries = prefix.join(&self.libraries);
        let mut command = Command::new(libraries.join(self.loader));
        command.arg("--library-path").arg(&libraries).arg(prefix.join(PROGRAM));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_dir_is_found_from_anywhere() {
        let dir = std::env::var_os("COFFERDAM_CRIU").expect("is set by cargo xtask unit");
        let here = std::env::current_dir().expect("a directory");
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = up.join(Path::new(&dir).strip_prefix("/").expect("is absolute"));
        let criu = Criu::find(&relative).expect("is CRIU");
        let version = criu.command().arg("--version").current_dir("/").output().expect("runs there, too");
        assert!(version.status.success());
    }
}
