//! A sandbox's `/dev`: six harmless device nodes, the usual links, and empty directories to mount on.
//! Each sandbox has its own: nodes that two sandboxes shared could be watched and locked across the wall between them.
//! Sandboxes cannot make device nodes and their root file system ignores any, so these are all there are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
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
/// Covers the id of the host's boot: a restored sandbox goes on in its own boot, a cold start is a new one.
pub(crate) const BOOT_ID: &str = ".boot_id";
/// `empty` covers directories of /proc and /sys that a sandbox has no business in.
const DIRS: [&str; 4] = ["pts", "shm", "mqueue", "empty"];

/// Makes the tree as a read-only mount that is attached nowhere, owned by the sandbox's root.
pub(crate) fn make(user_namespace: BorrowedFd<'_>, boot_id: &str) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "cofferdam-dev")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_set_string(&context, "size", "64k")?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let draft = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    fill(draft.as_fd(), boot_id)?;
    // A program that another thread starts may hold a copy of a descriptor that was written to, and a mount with
    // writers cannot become read-only. They are counted per mount, so the one that is handed out never had any.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let dev = open_tree(&draft, "", flags)?;
    sys::set_idmap(dev.as_fd(), user_namespace, true)?;
    Ok(dev)
}

/// Puts nodes, links, directories and the boot's id into an empty tree.
fn fill(dev: BorrowedFd<'_>, boot_id: &str) -> io::Result<()> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        mknodat(dev, name, FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // The process's umask has taken bits away.
        chmodat(dev, name, everyone, AtFlags::empty())?;
    }
    LINKS.iter().try_for_each(|(name, target)| symlinkat(*target, dev, *name))?;
    DIRS.iter().try_for_each(|name| mkdirat(dev, *name, Mode::from_raw_mode(0o755)))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = openat(dev, BOOT_ID, flags, Mode::from_raw_mode(0o444))?;
    rustix::io::write(&file, format!("{boot_id}\n").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::slot::make_namespaces;
    use engine_host::uids::FIRST_ID;

    /// A program that is being started holds copies of all descriptors until it runs.
    #[test]
    fn is_made_while_other_threads_start_programs() {
        let (user_namespace, _network) = make_namespaces(FIRST_ID).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        Command::new("/bin/true").status().unwrap();
                    }
                });
            }
            let made = (0..500).try_for_each(|_| make(user_namespace.as_fd(), "boot").map(drop));
            done.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }
}
