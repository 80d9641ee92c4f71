//! Removes a tree in place: what is left when a removal fails is where it was.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, fstat, unlinkat};
use rustix::io::Errno;

use crate::{Id, check_depth, for_each_entry, id_of, open_dir, open_parent};

/// Number of subdirectories of one directory whose names are remembered at a time.
const BATCH: usize = 1024;

/// A directory that is being emptied.
struct Level {
    id: Id,
    /// Its name in its parent.
    name: CString,
    /// Names of its directories that were not removed yet.
    pending: Vec<CString>,
    /// Whether it may have more entries than were read.
    has_more: bool,
}

/// Removes a file, or a directory and everything below it. What vanishes meanwhile counts as removed.
///
/// # Errors
/// `NotFound` if there is nothing at `path`. Something cannot be removed, the tree is more than [`crate::MAX_DEPTH`] directories deep,
/// or directories are moved or created in it meanwhile.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_while(path, || true)
}

/// Like [`remove`], for as long as `is_wanted` returns true: while others add files to a directory, its removal may have no end.
///
/// # Errors
/// As [`remove`]; `CANCELED` when it was not wanted any more.
pub fn remove_while(path: &Path, mut is_wanted: impl FnMut() -> bool) -> io::Result<()> {
    let refusal = match unlinkat(CWD, path, AtFlags::empty()) {
        // `PERM` is POSIX's error for a directory. And who may not remove the directory may still empty it.
        Err(error @ (Errno::ISDIR | Errno::PERM | Errno::ACCESS)) => error,
        answer => return Ok(answer?),
    };
    let top = match open_dir(CWD, path) {
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(refusal.into()),
        answer => answer?,
    };
    empty(top, &mut is_wanted)?;
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes everything below `top`.
fn empty(top: OwnedFd, is_wanted: &mut impl FnMut() -> bool) -> io::Result<()> {
    let mut here = top;
    let mut levels = vec![remove_files(&here, CString::default(), is_wanted)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            check_depth(levels.len())?;
            match open_dir(&here, &name) {
                Ok(next) => {
                    here = next;
                    levels.push(remove_files(&here, name, is_wanted)?);
                }
                // It was replaced by a file.
                Err(Errno::NOTDIR | Errno::LOOP) => gone(unlinkat(&here, &name, AtFlags::empty()))?,
                Err(error) => gone(Err(error))?,
            }
            continue;
        }
        if level.has_more {
            let name = std::mem::take(&mut level.name);
            *level = remove_files(&here, name, is_wanted)?;
            continue;
        }
        let name = std::mem::take(&mut level.name);
        levels.pop();
        if let Some(above) = levels.last() {
            here = open_parent(&here, above.id)?;
            gone(unlinkat(&here, &name, AtFlags::REMOVEDIR))?;
        }
    }
    Ok(())
}

/// Removes the files of a directory; returns it with its subdirectories still to be removed, a batch of them at most.
fn remove_files(dir: &OwnedFd, name: CString, is_wanted: &mut impl FnMut() -> bool) -> io::Result<Level> {
    let mut pending = Vec::new();
    for_each_entry(dir, |name, kind| {
        if !is_wanted() {
            return Err(Errno::CANCELED.into());
        }
        if kind == FileType::Directory {
            pending.push(name);
            return io::Result::Ok(pending.len() < BATCH);
        }
        match unlinkat(dir, &name, AtFlags::empty()) {
            // It was replaced by a directory.
            Err(Errno::ISDIR) => pending.push(name),
            answer => gone(answer)?,
        }
        Ok(pending.len() < BATCH)
    })?;
    let has_more = pending.len() >= BATCH;
    Ok(Level { id: id_of(&fstat(dir)?), name, pending, has_more })
}

/// Something that is not there needs no removal.
fn gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        answer => Ok(answer?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags, mkdirat, symlinkat};

    use super::*;

    /// Creates directories inside each other, with a file, a link and a second directory in some of them.
    fn make_deep(top: &Path, levels: usize) {
        fs::create_dir(top).unwrap();
        let mut deepest = open_dir(CWD, top).unwrap();
        for level in 0..levels {
            mkdirat(&deepest, "d", Mode::from_raw_mode(0o700)).unwrap();
            if level % 1000 == 0 {
                mkdirat(&deepest, "side", Mode::from_raw_mode(0)).unwrap();
                let flags = OFlags::CREATE | OFlags::WRONLY;
                rustix::fs::openat(&deepest, "file", flags, Mode::from_raw_mode(0)).unwrap();
                symlinkat("/etc", &deepest, "link").unwrap();
            }
            deepest = open_dir(&deepest, "d").unwrap();
        }
    }

    #[test]
    fn a_hundred_thousand_levels_are_removed_on_a_small_stack() {
        // In memory: a disk's journal takes minutes for this.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        make_deep(&tree, 100_000);
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let path = tree.clone();
        small.spawn(move || remove(&path)).unwrap().join().unwrap().unwrap();
        assert!(!tree.exists() && Path::new("/etc/passwd").exists());
    }

    #[test]
    fn a_wide_tree_is_removed_in_batches() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        for number in 0..2 * BATCH + 1 {
            fs::create_dir_all(tree.join(number.to_string()).join("inner")).unwrap();
            fs::write(tree.join(format!("file-{number}")), "").unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_removal_ends_when_it_is_not_wanted_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..10 {
            fs::write(tree.join(number.to_string()), "").unwrap();
        }
        let mut left = 5;
        let ended = remove_while(&tree, || {
            left -= 1;
            left >= 0
        });
        assert_eq!(ended.unwrap_err().raw_os_error(), Some(Errno::CANCELED.raw_os_error()));
        assert_eq!(fs::read_dir(&tree).unwrap().count(), 5);
        remove(&tree).unwrap();
    }

    #[test]
    fn files_and_links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, kept] = ["file", "link", "kept"].map(|name| dir.path().join(name));
        fs::create_dir_all(kept.join("inner")).unwrap();
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        remove(&file).unwrap();
        remove(&link).unwrap();
        assert_eq!(remove(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(kept.join("inner").exists() && !file.exists() && fs::symlink_metadata(&link).is_err());
    }

    /// A directory that is moved away during a removal must not have its new surroundings removed.
    #[test]
    fn a_moved_directory_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let [tree, outside] = ["tree", "outside"].map(|name| dir.path().join(name));
        for path in [tree.join("a/b"), outside.join("kept")] {
            fs::create_dir_all(path).unwrap();
        }
        let above = id_of(&fstat(open_dir(CWD, tree.join("a")).unwrap()).unwrap());
        let inner = open_dir(CWD, tree.join("a/b")).unwrap();
        fs::rename(tree.join("a/b"), outside.join("b")).unwrap();
        assert!(open_parent(&inner, above).is_err());
        remove(&tree).unwrap();
        assert!(outside.join("kept").exists());
    }
}
