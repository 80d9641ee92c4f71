//! Locks of open files on ranges of bytes (`F_OFD_*`), which belong to an open file and not to a process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::syscall;

/// Whether somebody else has a lock on a range of a file that excludes another one. `last` is `None` for the end of the file.
///
/// # Errors
/// The kernel refused.
pub fn is_range_locked(
    file: BorrowedFd<'_>,
    exclusive: bool,
    first: u64,
    last: Option<u64>,
) -> io::Result<bool> {
    let mut lock = describe(exclusive, first, last)?;
    call(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Locks a range of a file without waiting.
///
/// # Errors
/// `WouldBlock` if somebody else has it.
pub fn lock_range(file: BorrowedFd<'_>, exclusive: bool, first: u64, last: Option<u64>) -> io::Result<()> {
    call(file, libc::F_OFD_SETLK, &mut describe(exclusive, first, last)?)
}

fn describe(exclusive: bool, first: u64, last: Option<u64>) -> io::Result<libc::flock> {
    let length = last.map_or(0, |last| last.saturating_sub(first).saturating_add(1));
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(first).map_err(io::Error::other)?,
        l_len: i64::try_from(length).map_err(io::Error::other)?,
        l_pid: 0,
    })
}

fn call(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    let arguments = [file.as_raw_fd() as usize, command as usize, ptr::from_mut(lock) as usize, 0, 0, 0];
    // SAFETY: the struct lives through the call, and the kernel writes nothing else.
    unsafe { syscall(libc::SYS_fcntl, arguments) }?;
    Ok(())
}
