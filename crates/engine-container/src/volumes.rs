//! Volumes in a container: bind mounts of directories of the host, in which owners are those of the sandbox. So locks, watches, mapped
//! files and speed are the host's.
//! They are mounted from outside before the sandbox's owner can run programs; where a path leads is decided within the sandbox's root.
//! In a restore CRIU mounts them where they were.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use engine::{EngineError, VolumeMount};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, fchmod, mkdirat, open, openat, openat2, readlinkat,
    statx,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use serde::{Deserialize, Serialize};
use sys::Namespace;

/// A volume that a sandbox has mounted, in records of sandboxes and snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountedVolume {
    /// The path that was asked for.
    pub(crate) path: String,
    /// Where that led: the mount point as the sandbox sees it.
    pub(crate) mount_point: String,
    /// Whether the sandbox may only read.
    #[serde(default)]
    pub(crate) read_only: bool,
}

/// Mode of directories that are made for mount points.
const MOUNT_POINT_MODE: Mode = Mode::from_raw_mode(0o755);
/// What leads to another place than the text says must do so within the sandbox's root.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Returns a detached mount of a volume with the owners that `user_namespace` maps.
///
/// # Errors
/// The kernel refused, for example because the file system cannot be idmapped.
pub(crate) fn detached(volume: &VolumeMount, user_namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(volume.source.as_fd(), c"", flags)?;
    sys::set_idmap(mount.as_fd(), user_namespace, volume.read_only)?;
    sys::seal_mount(mount.as_fd(), volume.read_only)?;
    // The same flags whatever the file system: see `nothing`.
    sys::set_no_access_times(mount.as_fd())?;
    Ok(mount)
}

/// Returns a detached mount of an empty file system in which nothing can be made: for a path at which a snapshot had a volume that a
/// sandbox from it does not have. CRIU can take no flag of it away, so it has those of a volume and no other.
///
/// # Errors
/// The kernel refused.
pub(crate) fn nothing() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in [("source", "none"), ("mode", "555"), ("size", "4k"), ("nr_inodes", "1")] {
        fsconfig_set_string(context.as_fd(), name, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Mounts volumes in the running sandbox whose PID 1 is `pid`, and returns where they are. Blocks.
///
/// # Errors
/// [`EngineError::Mount`] if a path cannot be a mount point, otherwise the step that failed.
pub(crate) fn mount_volumes(pid: i32, volumes: &[VolumeMount]) -> Result<Vec<MountedVolume>, EngineError> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    let namespace = |kind| Namespace::of_process(pid, kind).map_err(EngineError::kernel("enter the sandbox"));
    let (users, mounts) = (namespace("user")?, namespace("mnt")?);
    let mut detached_volumes = Vec::new();
    for volume in volumes {
        let mount = detached(volume, users.as_fd()).map_err(EngineError::kernel("mount a volume"))?;
        detached_volumes.push((volume, mount));
    }
    // Opened outside: the sandbox's own /proc knows nothing of this process.
    let descriptors = open("/proc/self/fd", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let descriptors = descriptors.map_err(EngineError::kernel("open /proc"))?;
    let attached = sys::in_mount_namespace(&mounts, || {
        let attach = |(volume, mount)| (volume, attach(volume, mount, &descriptors));
        Ok(detached_volumes
            .iter()
            .map(|(volume, mount): &(&VolumeMount, OwnedFd)| (*volume, mount))
            .map(attach)
            .collect::<Vec<_>>())
    });
    attached
        .map_err(EngineError::kernel("enter the sandbox"))?
        .into_iter()
        .map(|(volume, mount_point)| {
            let (path, read_only) = (volume.path.clone(), volume.read_only);
            match mount_point {
                Ok(mount_point) => Ok(MountedVolume { path, mount_point, read_only }),
                Err(error) => Err(EngineError::Mount { path, reason: error.to_string() }),
            }
        })
        .collect()
}

/// Attaches a mount at a path of the sandbox, whose missing directories are made; returns the path without links. Called in the sandbox's
/// mount namespace; `descriptors` are those of this process.
fn attach(volume: &VolumeMount, mount: &OwnedFd, descriptors: &OwnedFd) -> io::Result<String> {
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut target = root.try_clone()?;
    let mut reached = String::new();
    for part in volume.path.split('/').filter(|part| !part.is_empty()) {
        reached.push('/');
        reached.push_str(part);
        target = match open_directory(&root, &reached) {
            Err(Errno::NOENT) => {
                make_directory(&target, part)?;
                open_directory(&root, &reached)?
            }
            opened => opened?,
        };
    }
    let mount_point = readlinkat(descriptors, target.as_raw_fd().to_string(), Vec::new())?;
    let mount_point =
        mount_point.into_string().map_err(|_| io::Error::other("the path leads to one that is not UTF-8"))?;
    if let Some(reason) = refused_mount_point(&mount_point) {
        return Err(io::Error::other(reason));
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", &target, c"", flags)?;
    Ok(mount_point)
}

/// Returns why a volume may not be mounted at a path without links. A template chooses where links lead.
fn refused_mount_point(path: &str) -> Option<&'static str> {
    let is_at =
        |dir: &&str| path.strip_prefix(*dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !path.starts_with('/') || path.contains(['[', ']', '\n']) {
        return Some(
            "the path leads to one with brackets or line breaks, which memory snapshots cannot name",
        );
    }
    let is_reserved = path == "/" || ["/proc", "/sys", "/dev", "/run"].iter().any(is_at);
    is_reserved.then_some("the path leads to a directory that makes the sandbox what it is")
}

fn open_directory(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), WITHIN)
}

/// Makes a directory that belongs to the owner of the one it is in.
fn make_directory(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let owner = statx(parent, c"", AtFlags::EMPTY_PATH, StatxFlags::UID)?.stx_uid;
    sys::with_filesystem_ids(owner, || mkdirat(parent, name, MOUNT_POINT_MODE))??;
    // Whatever this process's mask is.
    let dir = openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(fchmod(dir, MOUNT_POINT_MODE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_do_not_take_the_place_of_what_a_sandbox_needs() {
        for path in ["/data", "/usr/bin/deep", "/runs", "/devices/x", "/procs"] {
            assert_eq!(refused_mount_point(path), None, "{path}");
        }
        for path in ["/", "/proc", "/proc/sys", "/dev/.resources", "/run", "/a[b", "/a\nb", "(unreachable)/x"]
        {
            assert!(refused_mount_point(path).is_some(), "{path}");
        }
    }
}
