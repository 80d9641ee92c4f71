//! Identity and capabilities of the calling thread alone. Raw system calls, because libc's functions change every thread.

use std::io;

use rustix::io::Errno as RustixErrno;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::raw::{Errno, syscall};

const SECBIT_NO_SETUID_FIXUP: usize = 1 << 2;
/// Leaves an id as it is.
const KEEP: usize = usize::MAX;

/// Drops this thread's groups, and changes its group id, if one is given, and its user id, for good.
///
/// # Errors
/// The kernel refused.
pub fn set_user(uid: u32, gid: Option<u32>) -> io::Result<()> {
    // SAFETY: these calls change only this thread's credentials; the list of groups is empty.
    unsafe {
        syscall(libc::SYS_setgroups, [0; 6])?;
        if let Some(gid) = gid {
            let gid = gid as usize;
            syscall(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0])?;
        }
        let uid = uid as usize;
        syscall(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0])?;
    }
    Ok(())
}

/// Runs `action` with the effective user of this thread set to `id`; the thread keeps its capabilities.
///
/// # Errors
/// The kernel refused.
pub fn with_effective_user<T>(id: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    keeping_capabilities(|| {
        // SAFETY: these calls change only this thread's credentials and take no pointers.
        unsafe {
            syscall(libc::SYS_setresuid, [KEEP, id as usize, KEEP, 0, 0, 0])?;
            let result = action();
            syscall(libc::SYS_setresuid, [KEEP, 0, KEEP, 0, 0, 0])?;
            Ok(result)
        }
    })
}

/// Runs `action` with the file system user and group of this thread set to `id`; the thread keeps its capabilities.
/// The kernel sets up an overlay with an idmapped upper directory with the mounter's file system ids, which must be in the map.
///
/// # Errors
/// The kernel refused.
pub fn with_filesystem_ids<T>(id: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    let id = id as usize;
    keeping_capabilities(|| {
        // SAFETY: these calls change only this thread's credentials and take no pointers. They return the old value and have no way
        // to report a failure.
        unsafe {
            let _ = syscall(libc::SYS_setfsgid, [id, 0, 0, 0, 0, 0]);
            let _ = syscall(libc::SYS_setfsuid, [id, 0, 0, 0, 0, 0]);
            let result = action();
            let _ = syscall(libc::SYS_setfsuid, [0; 6]);
            let _ = syscall(libc::SYS_setfsgid, [0; 6]);
            Ok(result)
        }
    })
}

/// Runs `action` with the secure bit set that keeps this thread's capabilities when its user id changes.
fn keeping_capabilities<T>(action: impl FnOnce() -> Result<T, Errno>) -> io::Result<T> {
    let set = |bits| {
        // SAFETY: changes only this thread's secure bits and takes no pointers.
        unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, bits, 0, 0, 0, 0]) }
    };
    // SAFETY: reads this thread's secure bits and takes no pointers.
    let before = unsafe { syscall(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as usize, 0, 0, 0, 0, 0]) }?;
    set(before | SECBIT_NO_SETUID_FIXUP)?;
    let result = action()?;
    set(before)?;
    Ok(result)
}

/// Removes every capability that is not in `keep` from the bounding set of the calling thread. Makes system calls only: a child that
/// shares its parent's memory may use it.
///
/// # Errors
/// The kernel refused: the thread has no `CAP_SETPCAP`.
pub fn limit_bounding_set(keep: CapabilitySet) -> Result<(), RustixErrno> {
    for bit in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else { continue };
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows fewer capabilities than rustix does.
            Err(RustixErrno::INVAL) => {}
            result => result?,
        }
    }
    Ok(())
}
