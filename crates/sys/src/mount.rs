//! `mount_setattr` on detached mounts: mapping owners, and removing rights.
//! Needs `CAP_SYS_ADMIN` over the file system.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::raw::syscall;

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Maps the owners in the detached mount `mount` as the user namespace `user_namespace` does; optionally read-only.
///
/// # Errors
/// The file system cannot be idmapped, or the mount is attached.
pub fn set_idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set(mount, libc::MOUNT_ATTR_IDMAP | read_only, user_namespace.as_raw_fd() as u64)
}

/// Disables set-user-id programs and devices in the detached mount `mount`; optionally makes it read-only.
///
/// # Errors
/// The descriptor is not the root of a mount.
pub fn seal_mount(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set(mount, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only, 0)
}

/// Turns the recording of access times off in the detached mount `mount`, whatever the file system's default is.
///
/// # Errors
/// The descriptor is not the root of a mount.
pub fn set_no_access_times(mount: BorrowedFd<'_>) -> io::Result<()> {
    change(
        mount,
        &MountAttr {
            attr_set: libc::MOUNT_ATTR_NOATIME,
            attr_clr: libc::MOUNT_ATTR__ATIME,
            ..MountAttr::default()
        },
    )
}

fn set(mount: BorrowedFd<'_>, attr_set: u64, userns_fd: u64) -> io::Result<()> {
    change(mount, &MountAttr { attr_set, userns_fd, ..MountAttr::default() })
}

fn change(mount: BorrowedFd<'_>, attributes: &MountAttr) -> io::Result<()> {
    // SAFETY: the path is a literal, the struct lives through the call and its size is given.
    unsafe {
        syscall(
            libc::SYS_mount_setattr,
            [
                mount.as_raw_fd() as usize,
                c"".as_ptr() as usize,
                libc::AT_EMPTY_PATH as usize,
                ptr::from_ref(attributes) as usize,
                size_of::<MountAttr>(),
                0,
            ],
        )?;
    }
    Ok(())
}
