//! A sandbox's `/dev`: six harmless device nodes, the usual links, and empty folders to mount on.
//! Each sandbox has its own: nodes that two sandboxes shared could be watched and locked across the wall between them.
//! Sandboxes cannot make device nodes and their root file system ignores any, so these are all there are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, chmodat, makedev, mkdirat, mknodat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// Name, major and minor number of each node.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// `empty` covers folders of /proc and /sys that a sandbox has no business in.
const FOLDERS: [&str; 4] = ["pts", "shm", "mqueue", "empty"];

/// Makes the tree as a read-only mount that is attached nowhere, owned by the sandbox's root.
pub(crate) fn make(user_namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "cofferdam-dev")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_set_string(&context, "size", "64k")?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        mknodat(&dev, name, FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // The process's umask has taken bits away.
        chmodat(&dev, name, everyone, AtFlags::empty())?;
    }
    LINKS.iter().try_for_each(|(name, target)| symlinkat(*target, &dev, *name))?;
    FOLDERS.iter().try_for_each(|name| mkdirat(&dev, *name, Mode::from_raw_mode(0o755)))?;
    sys::set_idmap(dev.as_fd(), user_namespace, true)?;
    Ok(dev)
}
