//! Visits a whole tree with two open directories at a time.
//! The way back up is `..`, checked against what was seen on the way down.
//! Used for copying and for measuring.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};

use super::{for_each_entry, open_dir};

/// What is done along the way.
pub(crate) trait Visit {
    /// Something that is not a directory.
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()>;
    /// A directory, before anything in it.
    fn enter(&mut self, name: &CStr) -> io::Result<()>;
    /// The directory entered last and not yet left, after everything in it. The top is left too.
    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()>;
}

/// A file's identity.
pub(crate) type Id = (u64, u64);

pub(crate) fn id_of(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// Opens the directory above, which must be the one that was come from.
pub(crate) fn climb(from: &OwnedFd, expected: Id) -> io::Result<OwnedFd> {
    let above = open_dir(from, c"..")?;
    if id_of(&fstat(&above)?) == expected { Ok(above) } else { Err(changed()) }
}

/// The tree was not left alone.
pub(crate) fn changed() -> io::Error {
    io::Error::other("the tree changed while it was read; freeze the sandbox first")
}

/// A directory that is being visited.
struct Level {
    id: Id,
    /// Directories in it not yet entered.
    pending: Vec<CString>,
}

/// Visits everything below `top`, directories before what is in them.
pub(crate) fn walk(top: OwnedFd, visit: &mut impl Visit) -> io::Result<()> {
    let mut here = top;
    let mut levels = vec![look_around(&here, visit)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            let next = open_dir(&here, &name)?;
            visit.enter(&name)?;
            here = next;
            levels.push(look_around(&here, visit)?);
        } else {
            visit.leave(&here)?;
            levels.pop();
            if let Some(above) = levels.last() {
                here = climb(&here, above.id)?;
            }
        }
    }
    Ok(())
}

fn look_around(dir: &OwnedFd, visit: &mut impl Visit) -> io::Result<Level> {
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

/// How much there is of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// On disk, bytes; files with several names count once.
    pub bytes: u64,
    /// Names, with the top.
    pub entries: u64,
}

/// Looks at everything below `top`.
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
    impl Visit for Sum {
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
