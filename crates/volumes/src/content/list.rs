//! Listing directories, as deep as asked for: a directory before what is in it, links not followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;

use super::entry::Entry;
use super::path::VolumePath;
use super::{VolumeRoot, entry_at};
use crate::error::VolumeError;

/// How deep a directory is listed at most.
pub const MAX_DEPTH: u32 = 10;
/// How many entries are listed at most: a sandbox decides how many there are.
const MAX_ENTRIES: usize = 100_000;

impl VolumeRoot {
    /// Lists a directory, sorted by name, down to `depth` levels. 0 counts as 1.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] also if it is not a directory, [`VolumeError::Invalid`] if `depth` is more than [`MAX_DEPTH`] or there
    /// are more than 100,000 entries.
    pub fn list(&self, path: &VolumePath, depth: u32) -> Result<Vec<Entry>, VolumeError> {
        if depth > MAX_DEPTH {
            return Err(VolumeError::Invalid(format!("depth must not be more than {MAX_DEPTH}")));
        }
        let top = match self.open_dir(path) {
            Err(VolumeError::NotDirectory) => return Err(VolumeError::NotFound),
            top => top?,
        };
        let mut entries = Vec::new();
        list_into(&mut entries, &top, path, depth.max(1))?;
        Ok(entries)
    }
}

/// Recursion is no deeper than [`MAX_DEPTH`].
fn list_into(
    entries: &mut Vec<Entry>,
    dir: &OwnedFd,
    path: &VolumePath,
    depth: u32,
) -> Result<(), VolumeError> {
    let mut names = Vec::new();
    walk::for_each_entry(dir, |name, kind| {
        names.push((name, kind));
        if entries.len() + names.len() > MAX_ENTRIES { Err(too_many()) } else { Ok(true) }
    })?;
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, kind) in names {
        let path = path.join(&name);
        match entry_at(dir.as_fd(), &name, &path) {
            // It was removed meanwhile.
            Err(VolumeError::NotFound) => continue,
            entry => entries.push(entry?),
        }
        if depth > 1 && kind == FileType::Directory {
            match walk::open_dir(dir, &name) {
                Ok(below) => list_into(entries, &below, &path, depth - 1)?,
                // It was removed or replaced meanwhile.
                Err(_) => continue,
            }
        }
    }
    Ok(())
}

fn too_many() -> VolumeError {
    VolumeError::Invalid(format!("more than {MAX_ENTRIES} entries: list the directories below one by one"))
}
