//! The `/dev` that all sandboxes share: six harmless device nodes, the usual links, and empty folders to mount on.
//! Made once a server in a tmpfs and attached read-only; each sandbox gets a clone of that mount.
//! Sandboxes cannot make device nodes and their own file system ignores any, so these are all there are.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat, symlink};
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, mount_remount,
    open_tree, unmount,
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

/// The shared tree; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Devices {
    path: PathBuf,
}

impl Devices {
    /// Makes the tree at `path`, replacing what a crashed server left there.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        detach(&path);
        fs::create_dir_all(&path)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("cofferdam-dev", &path, "tmpfs", flags, c"mode=0755,size=64k")?;
        let devices = Self { path };
        mount_change(&devices.path, MountPropagationFlags::PRIVATE)?;
        for (name, major, minor) in NODES {
            let node = devices.path.join(name);
            mknodat(
                CWD,
                &node,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                makedev(major, minor),
            )?;
            // The process's umask has taken bits away.
            chmod(&node, Mode::from_raw_mode(0o666))?;
        }
        LINKS.iter().try_for_each(|(name, target)| symlink(*target, devices.path.join(name)))?;
        FOLDERS.iter().try_for_each(|name| fs::create_dir(devices.path.join(name)))?;
        mount_remount(&devices.path, flags | MountFlags::RDONLY, "")?;
        Ok(devices)
    }

    /// A detached clone of the tree, for one sandbox.
    pub(crate) fn clone_tree(&self) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, &self.path, flags)?)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        detach(&self.path);
        let _ = fs::remove_dir(&self.path);
    }
}

fn detach(path: &Path) {
    while unmount(path, UnmountFlags::DETACH).is_ok() {}
}
