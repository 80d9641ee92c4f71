//! overlayfs' work directory, made fit for another mount of an upper that was mounted before, or copied.
//! `volatile` mounts leave a mark that forbids a second one; and the index, which keeps hard links of template files together,
//! says which upper it belongs to, so that it is refused beside a copy.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, fremovexattr, unlinkat};
use rustix::io::Errno;

use crate::LayerError;
use crate::copy_tree::{for_each_entry, open_dir};
use crate::trash::remove_tree;

/// Has the overlay whose work directory is `work` mountable once more, with the options the container engine uses. `copied` says
/// that the tree it is in was copied since it was last mounted; what the index knows of directories is dropped then, which
/// costs nothing but handles (inotify across memory snapshots) of template directories that were renamed.
///
/// The sandbox must not run; it never sees this directory.
///
/// # Errors
/// The directory is missing or cannot be changed.
pub fn renew_overlay_work(work: &Path, copied: bool) -> Result<(), LayerError> {
    renew(work, copied).map_err(LayerError::at(work))
}

fn renew(work: &Path, copied: bool) -> io::Result<()> {
    let dir = open_dir(CWD, work)?;
    match remove_tree(&work.join("work")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let index = match open_dir(&dir, "index") {
        Ok(index) if copied => index,
        Ok(_) | Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match fremovexattr(&index, "trusted.overlay.upper") {
        Ok(()) | Err(Errno::NODATA) => {}
        Err(error) => return Err(error.into()),
    }
    let mut dirs = Vec::new();
    for_each_entry(&index, |name, kind| {
        if kind == FileType::Directory {
            dirs.push(name);
        }
        io::Result::Ok(true)
    })?;
    // They hold nothing; what they say is in an attribute, and of no use in another place.
    Ok(dirs.iter().try_for_each(|name| unlinkat(&index, name, AtFlags::REMOVEDIR))?)
}
