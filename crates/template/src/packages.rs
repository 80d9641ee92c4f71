//! Programs of Debian packages in directories of their own, with the libraries they need: nothing of the host is used or changed.
//! The host's own release does not matter, as each copy has its own loader.
//! A directory is there whole or not at all. What is taken out of the packages is up to whoever installs.

use std::fs;
use std::io;
use std::path::Path;

use crate::TemplateError;
use crate::mmdebstrap::{self, Progress};

const MIRROR: &str = "http://deb.debian.org/debian";

/// What to install.
#[derive(Debug)]
pub(crate) struct Packages {
    /// For messages.
    pub(crate) name: &'static str,
    /// Debian's release.
    pub(crate) suite: &'static str,
    /// Packages; what they depend on comes with them.
    pub(crate) packages: &'static [&'static str],
}

/// Unpacks the packages, has `pick` make a new directory of them, and puts that in `directory`'s place. Blocks for some seconds.
pub(crate) fn install(
    what: &Packages,
    dir: &Path,
    report: &mut dyn FnMut(Progress),
    pick: impl FnOnce(&Path, &Path) -> Result<(), TemplateError>,
) -> Result<(), TemplateError> {
    let beside = |suffix: &str| {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        dir.with_file_name(name)
    };
    let (unpacked, wanted, old) = (beside(".unpacked"), beside(".new"), beside(".old"));
    let work = [&unpacked, &wanted, &old];
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(TemplateError::at(parent))?;
    }
    work.iter().try_for_each(|left| remove(left))?;
    let outcome = unpack(what, &unpacked, report).and_then(|()| {
        pick(&unpacked, &wanted)?;
        if dir.exists() {
            fs::rename(dir, &old).map_err(TemplateError::at(dir))?;
        }
        fs::rename(&wanted, dir).map_err(TemplateError::at(dir))
    });
    work.iter().try_for_each(|left| remove(left))?;
    outcome
}

fn unpack(what: &Packages, dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), TemplateError> {
    let mut command = mmdebstrap::command("extract", what.packages);
    // Signatures are checked as ever. Frozen copies of the archive, which offline sites have, outlive their date.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"").arg(what.suite).arg(dir).arg(MIRROR);
    mmdebstrap::run(command, what.name, report)
}

fn remove(dir: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TemplateError::at(dir)(error)),
        _ => Ok(()),
    }
}
