//! Per-thread file system identity.
//! An overlay with an idmapped upper is set up by the kernel in the mounter's name, and that name must lie inside the map.
//! Raw calls, because libc's would change every thread.

use std::io;

use crate::raw::syscall;

const SECBIT_NO_SETUID_FIXUP: usize = 1 << 2;

/// Runs `action` with this thread's effective user set to `id`, keeping its capabilities.
///
/// # Errors
/// The kernel refused.
pub fn with_effective_user<T>(id: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    const KEEP: usize = usize::MAX;
    // SAFETY: these calls change only this thread's credentials and take no pointers.
    unsafe {
        let before = syscall(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as usize, 0, 0, 0, 0, 0])?;
        syscall(
            libc::SYS_prctl,
            [libc::PR_SET_SECUREBITS as usize, before | SECBIT_NO_SETUID_FIXUP, 0, 0, 0, 0],
        )?;
        syscall(libc::SYS_setresuid, [KEEP, id as usize, KEEP, 0, 0, 0])?;
        let answer = action();
        syscall(libc::SYS_setresuid, [KEEP, 0, KEEP, 0, 0, 0])?;
        syscall(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, before, 0, 0, 0, 0])?;
        Ok(answer)
    }
}

/// Runs `action` with this thread's file system user and group set to `id`, keeping its capabilities.
///
/// # Errors
/// The kernel refused to keep the capabilities.
pub fn with_filesystem_ids<T>(id: u32, action: impl FnOnce() -> T) -> io::Result<T> {
    let id = id as usize;
    // SAFETY: these calls change only this thread's credentials and take no pointers.
    unsafe {
        let before = syscall(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as usize, 0, 0, 0, 0, 0])?;
        syscall(
            libc::SYS_prctl,
            [libc::PR_SET_SECUREBITS as usize, before | SECBIT_NO_SETUID_FIXUP, 0, 0, 0, 0],
        )?;
        // Both answer the old value and have no way to fail visibly.
        let _ = syscall(libc::SYS_setfsgid, [id, 0, 0, 0, 0, 0]);
        let _ = syscall(libc::SYS_setfsuid, [id, 0, 0, 0, 0, 0]);
        let answer = action();
        let _ = syscall(libc::SYS_setfsuid, [0; 6]);
        let _ = syscall(libc::SYS_setfsgid, [0; 6]);
        syscall(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, before, 0, 0, 0, 0])?;
        Ok(answer)
    }
}
