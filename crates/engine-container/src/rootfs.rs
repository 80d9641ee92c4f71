//! A sandbox's root: an overlay of shared read-only layers below one private writable directory.
//! Built in the server and passed on as a detached mount, so that the host never follows a path in it.
//! Files are stored with the owners seen inside; idmapped mounts shift them to the sandbox's range of ids.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use sys::{set_idmap, with_filesystem_ids};

/// Builds the overlay of `layers`, uppermost first, and the writable tree `tree`; returns it as a detached mount. `uid_base` is the first
/// host id of the sandbox's range, which `user_namespace` maps.
///
/// # Errors
/// A layer is missing, or the kernel refused.
pub(crate) fn assemble(
    layers: &[PathBuf],
    tree: &Path,
    user_namespace: BorrowedFd<'_>,
    uid_base: u32,
) -> io::Result<OwnedFd> {
    let lowers: Vec<OwnedFd> =
        layers.iter().map(|layer| shifted(layer, user_namespace, true)).collect::<io::Result<_>>()?;
    let writable = shifted(tree, user_namespace, false)?;
    let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let upper = openat(&writable, "upper", dir, Mode::empty())?;
    let work = openat(&writable, "work", dir, Mode::empty())?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = context.as_fd();
    fsconfig_set_string(fd, "source", "cofferdam")?;
    lowers.iter().try_for_each(|lower| fsconfig_set_fd(fd, "lowerdir+", lower.as_fd()))?;
    fsconfig_set_fd(fd, "upperdir", upper.as_fd())?;
    fsconfig_set_fd(fd, "workdir", work.as_fd())?;
    // Otherwise every unmount syncs the whole file system below. What must be durable is synced by captures.
    fsconfig_set_flag(fd, "volatile")?;
    // inotify watches survive a memory snapshot only with file handles, and handles need the index.
    fsconfig_set_string(fd, "index", "on")?;
    fsconfig_set_string(fd, "nfs_export", "on")?;
    // Lets directories of the template be renamed, as on any other file system.
    fsconfig_set_string(fd, "redirect_dir", "on")?;
    // The kernel creates the work directory with the caller's ids, which must be in the map; otherwise the mount is read-only.
    with_filesystem_ids(uid_base, || fsconfig_create(fd))??;
    // Device nodes in a layer must not work. Set-user-id programs do work: sudo is one, and they only become the sandbox's root.
    Ok(fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?)
}

/// Returns a detached, idmapped clone of the mount at `path`.
fn shifted(path: &Path, user_namespace: BorrowedFd<'_>, read_only: bool) -> io::Result<OwnedFd> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    set_idmap(mount.as_fd(), user_namespace, read_only)?;
    Ok(mount)
}
