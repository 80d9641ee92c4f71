//! `sync_file_range`: starting the writeback of a file while more of it is still being written, so that a later `fsync` is faster.
//! Does not make anything durable by itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts the writeback of a part of a file, without waiting for it.
///
/// # Errors
/// The file has no page cache.
pub fn start_writeback(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let (start, length) = (number(start)?, number(length)?);
    // SAFETY: no memory is involved; the descriptor is open.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
