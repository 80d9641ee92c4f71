//! Attaching mounts inside an untrusted root, and making a mount the root of a process.
//! Makes system calls only: a child that shares its parent's memory may use it.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

/// Mounts a new file system of type `kind` on the directory `name` of the open directory `root`. A directory that does not exist is
/// created; a symbolic link is refused. No set-user-id programs, executables or devices are allowed on it, except the terminals of
/// devpts.
///
/// # Errors
/// The kernel refused: it does not know the file system or an option, or `name` is not a directory.
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

/// Attaches a detached mount to the directory `name` of the open directory `root`. A directory that does not exist is created; a
/// symbolic link is refused.
///
/// # Errors
/// The kernel refused: `name` is not a directory.
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

/// Attaches a detached mount at the path `target`, which the caller trusts.
///
/// # Errors
/// The kernel refused: `target` does not exist.
pub fn attach_at(mount: impl AsFd, target: &CStr) -> Result<(), Errno> {
    move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Attaches a detached mount at the path `target`, which the caller trusts, and returns its root directory, opened.
///
/// # Errors
/// The kernel refused: `target` does not exist.
pub fn attach_and_open(mount: impl AsFd, target: &CStr) -> Result<OwnedFd, Errno> {
    attach_at(mount, target)?;
    open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the open directory `root`, the root of a mount, the root of the calling process's mount namespace and unmounts the old one.
///
/// # Errors
/// The kernel refused: `root` is not the root of a mount, or the old root cannot be left.
pub fn change_root(root: impl AsFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")
}
