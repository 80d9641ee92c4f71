//! Prepares the work directory of an overlay so that the overlay can be mounted again, possibly with a copy of its upper directory.
//! A `volatile` mount leaves a mark that forbids a second mount. The index, which keeps hard links of template files together, names the
//! upper directory that it belongs to, so overlayfs refuses an index that was copied together with the upper directory.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, fremovexattr, unlinkat};
use rustix::io::Errno;

use crate::LayerError;
use crate::trash::remove_tree;
use walk::{for_each_entry, open_dir};

/// Makes the overlay with the work directory `work` mountable again, with the options of the container engine. `copied`: the tree was
/// copied since it was last mounted, so the index entries of directories are removed. This invalidates only file handles (inotify
/// across memory snapshots) of template directories that were renamed.
///
/// The overlay must not be mounted. Sandboxes never see this directory.
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
    // Index entries of directories are empty; their information is in an attribute and is invalid for a copy.
    Ok(dirs.iter().try_for_each(|name| unlinkat(&index, name, AtFlags::REMOVEDIR))?)
}
