//! Finds files in the layers below as overlayfs would: with whiteouts, opaque directories and files in place of directories.
//! Needed when a layer does not describe its parent directories, or links to a file of a layer below. The layers are untrusted, so
//! nothing in them is followed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::attributes::is_opaque;
use crate::OciError;

/// Opens the directory `name`; fails for anything else, also for a link to a directory.
pub(crate) fn open_dir<P: rustix::path::Arg>(at: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Returns whether a file is a whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The layers below, uppermost first.
pub(super) struct Lowers(Vec<OwnedFd>);

/// A file in a layer below.
pub(super) struct LowerFile {
    pub(super) dir: OwnedFd,
    pub(super) name: Vec<u8>,
    pub(super) stat: Stat,
}

impl LowerFile {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

enum Look {
    LowerFile(LowerFile),
    /// Not in this layer; layers further below may have it.
    Further,
    /// Not in this layer, and hidden in the layers further below.
    Gone,
}

impl Lowers {
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, OciError> {
        let open = |path: &PathBuf| open_dir(CWD, path).map_err(OciError::at(path));
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the file at a path, whose last component is not followed.
    pub(super) fn find<P: AsRef<[u8]>>(&self, path: &[P]) -> Result<Option<LowerFile>, Errno> {
        for layer in &self.0 {
            match look(layer, path)? {
                Look::LowerFile(found) => return Ok(Some(found)),
                Look::Gone => return Ok(None),
                Look::Further => {}
            }
        }
        Ok(None)
    }
}

fn look<P: AsRef<[u8]>>(layer: &OwnedFd, path: &[P]) -> Result<Look, Errno> {
    let Some((last, above)) = path.split_last() else { return Ok(Look::Gone) };
    let mut dir = open_dir(layer, c".")?;
    let mut hides = is_opaque(&dir)?;
    let missing = |hides| if hides { Look::Gone } else { Look::Further };
    for part in above {
        let stat = match statat(&dir, part.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(missing(hides)),
            answer => answer?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Look::Gone);
        }
        dir = open_dir(&dir, part.as_ref())?;
        hides |= is_opaque(&dir)?;
    }
    match statat(&dir, last.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(missing(hides)),
        Err(error) => Err(error),
        Ok(stat) if is_whiteout(&stat) => Ok(Look::Gone),
        Ok(stat) => Ok(Look::LowerFile(LowerFile { dir, name: last.as_ref().to_owned(), stat })),
    }
}
