//! Walks, measures and copies untrusted directory trees: any depth, any names, any kinds of files. Links are never followed.
//! Every step is relative to an open directory; depth costs memory on the heap, never stack, paths or descriptors.
//! A tree must not change while it is read; if it does, the result is an error, never access to files outside of it.

mod copy;
mod walk;
mod xattrs;

pub(crate) use copy::{Sharing, copy_tree};
pub use walk::TreeSize;
pub(crate) use walk::{Id, Visitor, changed, id_of, measure, open_parent, walk};
pub(crate) use xattrs::{Attributes, entry_path, xattrs_of};

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// Opens the directory `name`; fails for anything else, also for a link to a directory.
pub(crate) fn open_dir<P: rustix::path::Arg>(at: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `act` with the name and kind of every entry, until it returns false.
pub(crate) fn for_each_entry<E: From<Errno>>(
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
