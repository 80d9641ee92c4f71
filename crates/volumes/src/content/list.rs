//! Listing directories, as deep as asked for: a directory before what is in it, links not followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;

use super::entry::Entry;
use super::path::VolumePath;
use super::{VolumeRoot, entry_at};
use crate::error::VolumeError;

/// How deep a directory is listed at most.
pub const MAX_DEPTH: u32 = 10;
/// How many entries are listed at most, and how many bytes their paths and targets have in JSON: a sandbox decides about both.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: usize = 8 << 20;

impl VolumeRoot {
    /// Lists a directory, sorted by name, down to `depth` levels. 0 counts as 1.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] also if it is not a directory, [`VolumeError::Invalid`] if `depth` is more than [`MAX_DEPTH`] or there
    /// is too much in it: 100,000 entries, or 8 MiB of paths.
    pub fn list(&self, path: &VolumePath, depth: u32) -> Result<Vec<Entry>, VolumeError> {
        if depth > MAX_DEPTH {
            return Err(VolumeError::Invalid(format!("depth must not be more than {MAX_DEPTH}")));
        }
        let top = match self.open_dir(path) {
            Err(VolumeError::NotDirectory) => return Err(VolumeError::NotFound),
            top => top?,
        };
        let mut listing = Listing { entries: Vec::new(), bytes: 0 };
        listing.add(&top, path, depth.max(1))?;
        Ok(listing.entries)
    }
}

/// What was listed so far, and the size of its texts.
struct Listing {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Listing {
    /// Adds what is in a directory. Recursion is no deeper than [`MAX_DEPTH`].
    fn add(&mut self, dir: &OwnedFd, path: &VolumePath, depth: u32) -> Result<(), VolumeError> {
        let mut names = Vec::new();
        walk::for_each_entry(dir, |name, kind| {
            names.push((name, kind));
            if self.entries.len() + names.len() > MAX_ENTRIES { Err(too_much()) } else { Ok(true) }
        })?;
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in names {
            let path = path.join(&name);
            match entry_at(dir.as_fd(), &name, &path) {
                // It was removed meanwhile.
                Err(VolumeError::NotFound) => continue,
                entry => self.push(entry?)?,
            }
            if depth > 1 && kind == FileType::Directory {
                match walk::open_dir(dir, &name) {
                    Ok(below) => self.add(&below, &path, depth - 1)?,
                    // It was removed or replaced meanwhile.
                    Err(_) => continue,
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry) -> Result<(), VolumeError> {
        self.bytes += size_in_json(&entry.path) + size_in_json(&entry.name);
        self.bytes += entry.target.as_deref().map_or(0, size_in_json);
        if self.bytes > MAX_BYTES {
            return Err(too_much());
        }
        self.entries.push(entry);
        Ok(())
    }
}

fn size_in_json(text: &str) -> usize {
    text.chars()
        .map(|letter| match letter {
            '\0'..='\x1f' => 6,
            '"' | '\\' => 2,
            letter => letter.len_utf8(),
        })
        .sum()
}

fn too_much() -> VolumeError {
    VolumeError::Invalid(
        "too much in it to be listed: list the directories below one by one, or less deep".into(),
    )
}
