//! `sync_file_range`: writing to the disk begins while there is more to come.
//! Promises nothing: whoever needs it there waits for `fsync` as well, which then has less to do.
//! Works on every file system that has a page cache.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Begins to write what is in the page cache of a part of a file.
///
/// # Errors
/// Not a file with a page cache.
pub fn start_writing(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let (start, length) = (number(start)?, number(length)?);
    // SAFETY: no memory is involved; the descriptor is open.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
