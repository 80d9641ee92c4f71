//! The writable tree of a sandbox: made in advance with its slot, because making one takes time, or copied from a snapshot.
//! A sandbox's record is kept outside its tree, so that a sandbox which has filled its disk can still be captured and adopted.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{SandboxId, SnapshotId};
use engine_host::{snapshot_tree, tree_of};
use layers::{LayerError, TreeName, Trees, renew_overlay_work};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, open, openat2, unlinkat};
use rustix::io::Errno;
use tracing::warn;

use crate::host::Host;

/// An empty tree of a slot. Dropped before a sandbox has taken it, it is removed.
#[derive(Debug)]
pub(crate) struct PreparedTree {
    host: Arc<Host>,
    name: Option<TreeName>,
}

impl PreparedTree {
    /// Creates an empty tree. `uid_base` makes its name unique within this server.
    ///
    /// # Errors
    /// The disk is full, or the tree cannot be created.
    pub(crate) fn create(host: &Arc<Host>, uid_base: u32) -> Result<Self, LayerError> {
        let name: TreeName = name_of(uid_base).parse()?;
        // A server that was killed may have left one.
        host.trees.discard(&name)?;
        host.trees.create(&name, None)?;
        let path = host.trees.path(&name);
        let prepared = Self { host: host.clone(), name: Some(name) };
        for dir in ["upper", "work"] {
            let dir = path.join(dir);
            fs::create_dir(&dir).map_err(|source| LayerError::Io { path: dir, source })?;
        }
        Ok(prepared)
    }

    /// Makes it the tree of a sandbox and returns its path.
    ///
    /// # Errors
    /// The limit cannot be set, or the tree cannot be renamed.
    pub(crate) fn take(&mut self, id: &SandboxId, limit_mib: u32) -> Result<PathBuf, LayerError> {
        let name = self.name.as_ref().expect("a slot is used once");
        let own = tree_of(id);
        self.host.trees.set_limit(name, tree_limit(limit_mib))?;
        self.host.trees.rename(name, &own)?;
        self.name = None;
        Ok(self.host.trees.path(&own))
    }
}

impl Drop for PreparedTree {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = self.host.trees.discard(&name)
        {
            warn!(%name, %error, "failed to remove an unused tree; the next start tries again");
        }
    }
}

/// Copies a snapshot's tree as the tree of a sandbox and returns its path.
///
/// # Errors
/// The disk is full, or there is no such snapshot.
pub(crate) fn copy_snapshot_tree(
    trees: &Trees,
    snapshot: SnapshotId,
    id: &SandboxId,
    limit_mib: u32,
) -> Result<PathBuf, LayerError> {
    let own = tree_of(id);
    trees.copy(&snapshot_tree(snapshot), &own, false, tree_limit(limit_mib))?;
    let path = trees.path(&own);
    renew_overlay_work(&path.join("work"), true)?;
    Ok(path)
}

/// Opens the upper directory of the tree `tree`.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_upper(tree: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(tree.join("upper"), flags, Mode::empty())?)
}

/// Removes a name that CRIU has given to a deleted file while it captured the sandbox with the upper directory `upper`, if it is there: a
/// restore of the memory removes it itself, one of the files alone does not. The path is the one that the kernel gave, so it has no links
/// in it; one that has is not followed.
///
/// # Errors
/// The name cannot be removed.
pub(crate) fn remove_given_name(upper: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let path = Path::new(name);
    let path = path.strip_prefix("/").unwrap_or(path);
    let Some(last) = path.file_name() else { return Ok(()) };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let removed = match openat2(upper, dir, flags, Mode::empty(), resolve) {
        Ok(dir) => unlinkat(&dir, last, AtFlags::empty()),
        Err(error) => Err(error),
    };
    match removed {
        // It was in another file system, such as `/dev/shm`.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Name of the prepared tree of the slot with this range of ids.
fn name_of(uid_base: u32) -> String {
    format!("ready-{uid_base:x}")
}

/// Whether the tree belongs to a slot of this process.
pub(crate) fn is_prepared_tree_in_use(host: &Host, tree: &TreeName) -> bool {
    let base = tree.as_str().strip_prefix("ready-").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    base.is_some_and(|base| host.uids.is_used(base))
}

/// A limit of 0 is no limit.
fn tree_limit(mib: u32) -> Option<u32> {
    (mib > 0).then_some(mib)
}
