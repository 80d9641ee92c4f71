//! Visits all entries of a tree with two open directories at a time. The walk goes back up by `..` and checks that it is
//! the directory that the walk came from. Also measures trees.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};

use super::{for_each_entry, open_dir};

/// The actions of a walk.
pub(crate) trait Visitor {
    /// Called for every entry that is not a directory.
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()>;
    /// Called for a directory, before its entries.
    fn enter(&mut self, name: &CStr) -> io::Result<()>;
    /// Called for the directory that was entered last and not left yet, after all of its entries. Also called for the top.
    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()>;
}

/// A file's identity: device and inode number.
pub(crate) type Id = (u64, u64);

pub(crate) fn id_of(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// Opens the parent of a directory, which must be the expected one.
///
/// # Errors
/// The directory was moved, or its parent cannot be opened.
pub(crate) fn open_parent(from: &OwnedFd, expected: Id) -> io::Result<OwnedFd> {
    let above = open_dir(from, c"..")?;
    if id_of(&fstat(&above)?) == expected { Ok(above) } else { Err(changed()) }
}

/// The error for a tree that changed while it was read.
pub(crate) fn changed() -> io::Error {
    io::Error::other("the tree changed while it was read; freeze the sandbox first")
}

/// A directory that is being visited.
struct Level {
    id: Id,
    /// Names of its directories that were not entered yet.
    pending: Vec<CString>,
}

/// Visits everything below `top`, a directory before its content.
pub(crate) fn walk(top: OwnedFd, visit: &mut impl Visitor) -> io::Result<()> {
    let mut here = top;
    let mut levels = vec![visit_files(&here, visit)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            let next = open_dir(&here, &name)?;
            visit.enter(&name)?;
            here = next;
            levels.push(visit_files(&here, visit)?);
        } else {
            visit.leave(&here)?;
            levels.pop();
            if let Some(above) = levels.last() {
                here = open_parent(&here, above.id)?;
            }
        }
    }
    Ok(())
}

/// Visits the files of a directory; returns it with its subdirectories still to be entered.
fn visit_files(dir: &OwnedFd, visit: &mut impl Visitor) -> io::Result<Level> {
    let mut pending = Vec::new();
    for_each_entry(dir, |name, kind| {
        if kind == FileType::Directory {
            pending.push(name);
        } else {
            visit.file(dir, &name, &statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        }
        io::Result::Ok(true)
    })?;
    Ok(Level { id: id_of(&fstat(dir)?), pending })
}

/// The size of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// Space on disk, bytes; files with several names count once.
    pub bytes: u64,
    /// Number of entries, including the top.
    pub entries: u64,
}

/// Returns the size of the tree below `top`.
///
/// # Errors
/// The tree cannot be read, or changes meanwhile.
pub(crate) fn measure(top: OwnedFd) -> io::Result<TreeSize> {
    #[derive(Default)]
    struct Sum {
        size: TreeSize,
        seen: HashSet<Id>,
    }
    impl Sum {
        fn add(&mut self, stat: &Stat) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.size.bytes = self.size.bytes.saturating_add(blocks.saturating_mul(512));
        }
    }
    impl Visitor for Sum {
        fn file(&mut self, _dir: &OwnedFd, _name: &CStr, stat: &Stat) -> io::Result<()> {
            self.size.entries += 1;
            if stat.st_nlink == 1 || self.seen.insert(id_of(stat)) {
                self.add(stat);
            }
            Ok(())
        }

        fn enter(&mut self, _name: &CStr) -> io::Result<()> {
            Ok(())
        }

        fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
            self.size.entries += 1;
            self.add(&fstat(dir)?);
            Ok(())
        }
    }
    let mut sum = Sum::default();
    walk(top, &mut sum)?;
    Ok(sum.size)
}
