//! A sandbox's root: an overlay of shared read-only layers under one private writable directory, owners shifted by idmapped mounts.
//! Built in the server, handed over as a mount that is attached nowhere, so no path in it is ever followed on the host.
//! Files on disk keep the owners seen inside; only the mounts shift them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use sys::{set_idmap, with_filesystem_ids};

/// Builds the overlay. `base` is the first host id of the sandbox's range, mapped by `user_namespace`.
pub(crate) fn assemble(
    layers: &[PathBuf],
    private: &Path,
    user_namespace: BorrowedFd<'_>,
    base: u32,
) -> io::Result<OwnedFd> {
    let lowers: Vec<OwnedFd> =
        layers.iter().map(|layer| shifted(layer, user_namespace, true)).collect::<io::Result<_>>()?;
    let writable = shifted(private, user_namespace, false)?;
    let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let upper = openat(&writable, "upper", dir, Mode::empty())?;
    let work = openat(&writable, "work", dir, Mode::empty())?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = context.as_fd();
    fsconfig_set_string(fd, "source", "cofferdam")?;
    lowers.iter().try_for_each(|lower| fsconfig_set_fd(fd, "lowerdir+", lower.as_fd()))?;
    fsconfig_set_fd(fd, "upperdir", upper.as_fd())?;
    fsconfig_set_fd(fd, "workdir", work.as_fd())?;
    // Without it every unmount syncs the whole file system below; durability comes from explicit captures.
    fsconfig_set_flag(fd, "volatile")?;
    // inotify watches need file handles to survive a memory snapshot, and handles need the index.
    fsconfig_set_string(fd, "index", "on")?;
    fsconfig_set_string(fd, "nfs_export", "on")?;
    // Renaming a directory of the template must work as on any other file system.
    fsconfig_set_string(fd, "redirect_dir", "on")?;
    // The kernel makes the work directory in the caller's name, which must lie inside the map; otherwise the
    // mount succeeds read-only.
    with_filesystem_ids(base, || fsconfig_create(fd))??;
    // Device nodes in an image must stay dead files. Set-user-id programs work: sudo is one, and their
    // root is the sandbox's.
    Ok(fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?)
}

/// A detached, idmapped clone of the mount at `path`.
fn shifted(path: &Path, user_namespace: BorrowedFd<'_>, read_only: bool) -> io::Result<OwnedFd> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    set_idmap(mount.as_fd(), user_namespace, read_only)?;
    Ok(mount)
}
