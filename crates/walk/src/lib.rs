//! Walks and removes untrusted directory trees: any depth, any names, any kinds of files. Links are never followed.
//! Every step is relative to an open directory, and the way back up is `..`, checked to be the directory that the walk came from. So
//! depth costs some bytes of heap for each level, up to [`MAX_DEPTH`], and never stack, paths or descriptors: two directories are open
//! at a time. A tree that changes meanwhile gives an error, never access to files outside of it.
#![forbid(unsafe_code)]

mod remove;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxFlags, fstat, openat, statat};
use rustix::io::Errno;

pub use remove::{remove, remove_while};

/// Maximum depth of a tree, so that what a walk remembers of the levels above it has a limit: about 100 MiB.
pub const MAX_DEPTH: usize = 1 << 20;

/// The actions of a walk.
pub trait Visitor {
    /// Called for every entry that is not a directory.
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()>;
    /// Called for a directory, before its entries.
    fn enter(&mut self, name: &CStr) -> io::Result<()>;
    /// Called for the directory that was entered last and not left yet, after all of its entries. Also called for the top.
    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()>;
}

/// A file's identity: device and inode number.
pub type Id = (u64, u64);

/// Returns the identity of the file that `stat` describes.
#[must_use]
pub fn id_of(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// Opens the directory `name`; fails for anything else, also for a link to a directory.
///
/// # Errors
/// It is no directory (`NOTDIR`, `LOOP`), or cannot be opened.
pub fn open_dir<P: rustix::path::Arg>(at: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the parent of a directory, which must be the expected one.
///
/// # Errors
/// The directory was moved, or its parent cannot be opened.
pub fn open_parent(from: &OwnedFd, expected: Id) -> io::Result<OwnedFd> {
    let above = open_dir(from, c"..")?;
    if id_of(&fstat(&above)?) == expected { Ok(above) } else { Err(changed()) }
}

/// Returns the error for a tree that changed during a walk.
#[must_use]
pub fn changed() -> io::Error {
    io::Error::other("the tree changed while it was read")
}

/// Returns an error if a directory is too deep in its tree.
///
/// # Errors
/// It has more than [`MAX_DEPTH`] directories above it.
pub fn check_depth(depth: usize) -> io::Result<()> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(io::Error::other(format!("the tree is more than {MAX_DEPTH} directories deep")))
}

/// Calls `act` with the name and kind of every entry, until it returns false.
///
/// # Errors
/// The directory cannot be read, or `act` fails.
pub fn for_each_entry<E: From<Errno>>(
    dir: &OwnedFd,
    mut act: impl FnMut(CString, FileType) -> Result<bool, E>,
) -> Result<(), E> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        if !act(entry.file_name().to_owned(), kind)? {
            break;
        }
    }
    Ok(())
}

/// A directory that is being visited.
struct Level {
    id: Id,
    /// Names of its directories that were not entered yet.
    pending: Vec<CString>,
}

/// Visits everything below `top`, a directory before its content.
///
/// # Errors
/// The tree cannot be read, changes meanwhile or is too deep, or the visitor fails.
pub fn visit(top: OwnedFd, visitor: &mut impl Visitor) -> io::Result<()> {
    visit_where(top, visitor, |_| Ok(true))
}

/// Like [`visit`], but does not enter other mounts. Files that are mounts of their own are visited.
///
/// # Errors
/// As [`visit`].
pub fn visit_mount(top: OwnedFd, visitor: &mut impl Visitor) -> io::Result<()> {
    let mount = mount_id(&top, c"")?;
    visit_where(top, visitor, |dir| Ok(mount_id(dir, c"")? == mount))
}

/// Returns the id of the mount that a file is in; an empty name is the directory itself.
///
/// # Errors
/// The file cannot be examined.
pub fn mount_id(dir: &OwnedFd, name: &CStr) -> io::Result<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    Ok(rustix::fs::statx(dir, name, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn visit_where(
    top: OwnedFd,
    visitor: &mut impl Visitor,
    is_entered: impl Fn(&OwnedFd) -> io::Result<bool>,
) -> io::Result<()> {
    let mut here = top;
    let mut levels = vec![visit_files(&here, visitor)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            check_depth(levels.len())?;
            let next = open_dir(&here, &name)?;
            if !is_entered(&next)? {
                continue;
            }
            visitor.enter(&name)?;
            here = next;
            levels.push(visit_files(&here, visitor)?);
        } else {
            visitor.leave(&here)?;
            levels.pop();
            if let Some(above) = levels.last() {
                here = open_parent(&here, above.id)?;
            }
        }
    }
    Ok(())
}

/// Visits the files of a directory; returns it with its subdirectories still to be entered.
fn visit_files(dir: &OwnedFd, visitor: &mut impl Visitor) -> io::Result<Level> {
    let mut pending = Vec::new();
    for_each_entry(dir, |name, kind| {
        if kind == FileType::Directory {
            pending.push(name);
        } else {
            visitor.file(dir, &name, &statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        }
        io::Result::Ok(true)
    })?;
    Ok(Level { id: id_of(&fstat(dir)?), pending })
}
