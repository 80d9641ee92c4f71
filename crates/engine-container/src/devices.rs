//! The `/dev` of a container, as a detached read-only mount.
//! Each sandbox has a `/dev` of its own: device nodes shared by two sandboxes could be watched and locked across them.
//! Sandboxes cannot make device nodes and their root file system ignores them, so the nodes made here are the only ones.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
};
use sandbox_setup::dev;

use crate::resources;

/// An empty directory in `/dev`. It is mounted over directories of `/proc` and `/sys` that a sandbox must not see.
pub(crate) const EMPTY_DIR: &str = "empty";

/// Makes the tree as a detached read-only mount, owned by the sandbox's root.
///
/// # Errors
/// The kernel refused.
pub(crate) fn make_dev(user_namespace: BorrowedFd<'_>, boot_id: &str) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "cofferdam-dev")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_set_string(&context, "size", "64k")?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let draft = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    dev::populate(draft.as_fd(), boot_id)?;
    for name in [EMPTY_DIR, resources::MOUNT_POINT] {
        mkdirat(&draft, name, Mode::from_raw_mode(0o755))?;
    }
    // A process that another thread is starting may hold a copy of a descriptor that was written to, and a mount with writers cannot
    // become read-only. The kernel counts writers for each mount, so the clone that is returned has none.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let dev = open_tree(&draft, "", flags)?;
    sys::set_idmap(dev.as_fd(), user_namespace, true)?;
    Ok(dev)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::namespaces::make_namespaces;
    use engine_host::uids::FIRST_ID;

    /// A process between fork and exec holds copies of all descriptors.
    #[test]
    fn dev_is_made_while_other_threads_start_programs() {
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
            let made = (0..500).try_for_each(|_| make_dev(user_namespace.as_fd(), "boot").map(drop));
            done.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }
}
