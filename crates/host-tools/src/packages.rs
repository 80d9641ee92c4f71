//! Installs programs of Debian packages in directories of their own, with the libraries and the loader they need: nothing of the
//! host is used or changed, and its own Debian release does not matter.
//! An installed directory appears complete, by rename. The caller selects which files of the packages it gets.

use std::fs;
use std::io;
use std::path::Path;

use crate::HostToolError;
use crate::mmdebstrap::{self, Progress};

const MIRROR: &str = "http://deb.debian.org/debian";

/// The packages to install.
#[derive(Debug)]
pub(crate) struct Packages {
    /// Name of the program, for messages.
    pub(crate) name: &'static str,
    /// The Debian release.
    pub(crate) suite: &'static str,
    /// Names of packages; their dependencies are installed too.
    pub(crate) packages: &'static [&'static str],
}

/// Unpacks the packages, calls `pick(unpacked, new)` to fill a new directory from them, and replaces `dir` with that. Blocks for
/// some seconds. Temporary directories beside `dir` are removed, also those that a killed process left over.
///
/// # Errors
/// mmdebstrap fails, `pick` fails, or the directories cannot be written.
pub(crate) fn install(
    what: &Packages,
    dir: &Path,
    report: &mut dyn FnMut(Progress),
    pick: impl FnOnce(&Path, &Path) -> Result<(), HostToolError>,
) -> Result<(), HostToolError> {
    let beside = |suffix: &str| {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        dir.with_file_name(name)
    };
    let (unpacked, wanted, old) = (beside(".unpacked"), beside(".new"), beside(".old"));
    let temporary = [&unpacked, &wanted, &old];
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(HostToolError::at(parent))?;
    }
    temporary.iter().try_for_each(|dir| remove(dir))?;
    let outcome = unpack(what, &unpacked, report).and_then(|()| {
        pick(&unpacked, &wanted)?;
        if dir.exists() {
            fs::rename(dir, &old).map_err(HostToolError::at(dir))?;
        }
        fs::rename(&wanted, dir).map_err(HostToolError::at(dir))
    });
    temporary.iter().try_for_each(|dir| remove(dir))?;
    outcome
}

/// Unpacks the packages and their dependencies into `dir`.
fn unpack(what: &Packages, dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), HostToolError> {
    let mut command = mmdebstrap::command("extract", what.packages);
    // Signatures are checked, expiry is not: frozen copies of the archive, which offline sites use, outlive their date.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"").arg(what.suite).arg(dir).arg(MIRROR);
    mmdebstrap::run(command, what.name, report)
}

/// Removes a directory, if it exists.
fn remove(dir: &Path) -> Result<(), HostToolError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HostToolError::at(dir)(error)),
        _ => Ok(()),
    }
}
