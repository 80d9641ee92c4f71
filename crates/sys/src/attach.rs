//! Mounts inside a root that is not trusted: a name in it that is a link is refused, one that is missing is made.
//! What is mounted gives no rights: no set-user-id, no programs, no devices but terminals.
//! Makes system calls only: a child that shares its parent's memory may use it.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

/// Mounts a new file system on the directory `name` of the open directory `root`.
///
/// # Errors
/// The kernel's: no such file system, an option it does not know, `name` is no directory.
pub fn mount_new(
    kind: &str,
    root: impl AsFd,
    name: &str,
    options: &[(&str, &CStr)],
    attributes: MountAttrFlags,
) -> Result<(), Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // Terminals are devices.
    let devices = if kind == "devpts" { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    attach_mount(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, safe | devices | attributes)?, root, name)
}

/// Attaches a mount that is attached nowhere to the directory `name` of the open directory `root`.
///
/// # Errors
/// The kernel's: `name` is no directory.
pub fn attach_mount(mount: impl AsFd, root: impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match openat(&root, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            mkdirat(&root, name, Mode::from_raw_mode(0o755))?;
            openat(&root, name, flags, Mode::empty())?
        }
        answer => answer?,
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", &target, c"", flags)
}
