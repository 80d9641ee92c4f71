//! Finding CRIU: a private copy with its own libraries, brought by `cofferdam setup criu`.
//! Debian 12's 3.17 and every release before 4.2 fail on today's kernels, so an unfit one is named, not tried.
//! It is run through the copy's own loader: nothing of the host's libraries is used.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// First release whose dumps work on Linux 6.16 and newer.
const OLDEST: (u32, u32) = (4, 2);

/// A CRIU that can be run.
#[derive(Debug, Clone)]
pub struct Criu {
    loader: PathBuf,
    libraries: PathBuf,
    program: PathBuf,
    version: String,
    patience: Duration,
}

/// How long it may be silent where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(120);

impl Criu {
    /// Looks for CRIU under `prefix`, an unpacked Debian tree.
    ///
    /// # Errors
    /// What is missing or too old, in words for the operator.
    pub fn find(prefix: &Path) -> Result<Self, String> {
        let (triplet, loader) = if cfg!(target_arch = "aarch64") {
            ("aarch64-linux-gnu", "ld-linux-aarch64.so.1")
        } else {
            ("x86_64-linux-gnu", "ld-linux-x86-64.so.2")
        };
        // It is run in another directory than this one.
        let prefix =
            &std::path::absolute(prefix).map_err(|error| format!("{}: {error}", prefix.display()))?;
        let libraries = prefix.join("usr/lib").join(triplet);
        let mut criu = Self {
            loader: libraries.join(loader),
            program: prefix.join("usr/sbin/criu"),
            libraries,
            version: String::new(),
            patience: PATIENCE,
        };
        if !criu.program.exists() {
            return Err(format!("no CRIU in {}", prefix.display()));
        }
        let output = criu.command().arg("--version").output();
        let output = output.map_err(|error| format!("{} cannot be run: {error}", criu.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("").trim();
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
            let (major, minor) = OLDEST;
            return Err(format!("CRIU in {} is {version:?}; {major}.{minor} is needed", prefix.display()));
        }
        criu.version = version.to_owned();
        Ok(criu)
    }

    /// Its version, such as `4.2.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same, which may be silent for so long, plus what the size of the memory explains. Then it hangs, and is ended.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// A command that runs it, without arguments yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.libraries).arg(&self.program);
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
