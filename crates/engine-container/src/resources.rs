//! The mounts in which a sandbox sees its own size: the tree of its resource files, whose files are bound over those of `/proc` and
//! `/sys`, and its control group at `/sys/fs/cgroup`. They are made with the slot, because looking up their names takes time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use engine_host::Group;
use resource_files::ResourceFiles;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::host::Host;

/// Name of the directory in `/dev` at which the tree is mounted.
pub(crate) const MOUNT_POINT: &str = ".resources";

/// Detached read-only mounts of one sandbox.
#[derive(Debug)]
pub(crate) struct ResourceMounts {
    /// For `/dev/.resources`.
    pub(crate) files: OwnedFd,
    /// For `/sys/fs/cgroup`.
    pub(crate) cgroup: OwnedFd,
}

/// The same as borrowed descriptors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BorrowedMounts<'a> {
    pub(crate) files: BorrowedFd<'a>,
    pub(crate) cgroup: BorrowedFd<'a>,
}

impl ResourceMounts {
    /// Makes the mounts for the sandbox of a control group; `None` where the host has no FUSE, or nothing serves the files.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn make(
        host: &Host,
        group: &Group,
        user_namespace: BorrowedFd<'_>,
    ) -> io::Result<Option<Self>> {
        let Some(resource_files) = &host.resource_files else { return Ok(None) };
        let files =
            match resource_files.tree(group.name()).map_err(|error| (Errno::from_io_error(&error), error)) {
                // Nothing serves them any more, which was reported then.
                Err((Some(Errno::NOTCONN | Errno::CONNABORTED), _)) => return Ok(None),
                files => files.map_err(|(_, error)| error)?,
            };
        let cgroup = if host.hierarchies.v1.is_empty() {
            own_cgroup(group)?
        } else {
            let emulated = ResourceFiles::directory(&files, "cgroup")?;
            sys::set_idmap(emulated.as_fd(), user_namespace, true)?;
            emulated
        };
        sys::set_idmap(files.as_fd(), user_namespace, true)?;
        Ok(Some(Self { files, cgroup }))
    }

    pub(crate) fn borrow(&self) -> BorrowedMounts<'_> {
        BorrowedMounts { files: self.files.as_fd(), cgroup: self.cgroup.as_fd() }
    }
}

/// Returns the kernel's own files of the group, read-only: so none of them is a setting or starts a trigger of `*.pressure`.
fn own_cgroup(group: &Group) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, group.unified_path(), flags)?;
    sys::seal_mount(mount.as_fd(), true)?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use engine_host::Hierarchies;
    use rustix::fs::{Mode, OFlags, openat};

    use super::*;

    /// What hosts with version 2 mount. This host may have version 1 controllers: their groups exist in version 2 too.
    #[test]
    fn the_kernels_group_is_visible_and_not_writable() {
        let run_dir = tempfile::tempdir().unwrap();
        let name = format!("cofferdam-test-{}", std::process::id());
        let hierarchies = Hierarchies::open(&name, run_dir.path()).unwrap();
        let group = Group::create(&hierarchies, "s10000000").unwrap();
        let mount = own_cgroup(&group).unwrap();
        let open = |file, flags| openat(&mount, file, flags | OFlags::CLOEXEC, Mode::empty());
        assert!(open("cgroup.events", OFlags::RDONLY).is_ok());
        for file in ["cgroup.freeze", "cgroup.kill", "cgroup.procs", "cpu.pressure"] {
            assert_eq!(open(file, OFlags::WRONLY).unwrap_err(), Errno::ROFS, "{file}");
        }
        assert_eq!(rustix::fs::mkdirat(&mount, "mine", Mode::RWXU).unwrap_err(), Errno::ROFS);
        drop(mount);
        group.remove().unwrap();
        hierarchies.remove_if_empty();
    }
}
