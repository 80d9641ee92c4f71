//! Makes a tree that overlayfs wrote portable, before it becomes a layer.
//! Overlayfs stores attributes about the layers below in an upper directory (file handles, counts), which are invalid elsewhere and
//! would give equal trees different digests.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, lremovexattr, statat};
use rustix::io::Errno;

use crate::OciError;
use crate::unpack::MAX_DEPTH;
use crate::unpack::attributes::{entry_path, xattrs_of};
use crate::unpack::lower::open_dir;

/// The attributes that are removed. Attributes for whiteouts, opaque directories and renames stay.
const NOTES: [&[u8]; 5] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
];

/// Removes these attributes from a tree that is not in use, such as a copy of an upper directory in a `layers::Staging`. Blocks.
///
/// # Errors
/// A file cannot be changed, the tree is more than 200 directories deep, or a file's content is in a layer below (`metacopy`).
pub fn make_portable(root: &Path) -> Result<(), OciError> {
    let top = open_dir(CWD, root).map_err(OciError::at(root))?;
    strip(root, &top, b".")?;
    dir(root, &top, 0)
}

fn dir(path: &Path, at: &OwnedFd, depth: usize) -> Result<(), OciError> {
    if depth > MAX_DEPTH {
        return Err(not_portable(path, "is more than 200 directories deep"));
    }
    for entry in Dir::read_from(at).map_err(OciError::at(path))? {
        let entry = entry.map_err(OciError::at(path))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        strip(path, at, name)?;
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(OciError::at(path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let next = open_dir(at, name).map_err(OciError::at(path))?;
            dir(&path.join(&*String::from_utf8_lossy(name)), &next, depth + 1)?;
        }
    }
    Ok(())
}

fn strip(path: &Path, at: &OwnedFd, name: &[u8]) -> Result<(), OciError> {
    for (key, _) in xattrs_of(at, name).map_err(OciError::at(path))? {
        if key == b"trusted.overlay.metacopy" {
            return Err(not_portable(path, "holds a file without its content (metacopy)"));
        }
        if NOTES.contains(&&*key) {
            match lremovexattr(entry_path(at, name), &*key) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(OciError::at(path)(error)),
            }
        }
    }
    Ok(())
}

fn not_portable(path: &Path, why: &'static str) -> OciError {
    OciError::NotPortable { layer: "an upper".to_owned(), entry: path.display().to_string(), why }
}
