//! Trees that somebody hostile filled: any depth, any names, any kinds of files. Nothing is followed out of them.
//! Every step is relative to an open directory; depth costs memory on the heap, never stack, paths or descriptors.
//! A tree may not change while it is read here; where it does, that is an error and never an escape.

mod copy;
mod walk;
mod xattrs;

pub(crate) use copy::{Sharing, copy_tree};
pub use walk::TreeSize;
pub(crate) use walk::{Id, Visit, changed, climb, id_of, measure, walk};
pub(crate) use xattrs::{Attributes, entry_path, xattrs_of};

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// Opens the directory `name`, and only a directory.
pub(crate) fn open_dir<P: rustix::path::Arg>(at: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `act` with the name and kind of every entry, until it answers false.
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
