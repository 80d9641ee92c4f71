//! Writable trees as btrfs subvolumes: creating, copying and removing one is a single ioctl, whatever its size.
//! The kernel commits a btrfs snapshot to the disk before it is visible, so copies appear complete.
//! Limits are simple quotas; `charges` corrects what these count.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;
use sys::btrfs::{self, Quota, QuotaGroup};

use super::charges::{self, Charges};
use super::dirs::rename_exclusively;
use super::{TreeName, TreeUsage};
use crate::copy_tree::measure;
use crate::{LayerError, Trash};
use walk::open_dir;

#[derive(Debug)]
pub(super) struct Subvolumes {
    /// For directories that are not subvolumes. Dropped first, as it works below the root.
    trash: Trash,
    root: OwnedFd,
    /// The root's path, valid in this process.
    path: PathBuf,
    /// `None` without quotas.
    charges: Option<Charges>,
    /// The quota group of all trees.
    group: Option<QuotaGroup>,
}

/// Returns whether an open file or directory is on btrfs.
pub(crate) fn is_btrfs(file: impl AsFd) -> io::Result<bool> {
    const MAGIC: u64 = 0x9123_683e;
    // The type's width and sign depend on the architecture.
    Ok(fstatfs(file)?.f_type as u64 == MAGIC)
}

/// Enables quotas on a file system of our own, unless they are on.
pub(super) fn turn_quotas_on(root: &Path) -> io::Result<()> {
    let root = File::open(root)?;
    if Charges::of(root.as_fd())?.is_some() {
        return Ok(());
    }
    btrfs::enable_simple_quotas(root.as_fd())
}

impl Subvolumes {
    pub(super) fn open(path: PathBuf, group: Option<QuotaGroup>) -> Result<Self, LayerError> {
        let root: OwnedFd = File::open(&path).map_err(LayerError::at(&path))?.into();
        let trash = path.join(".trash");
        fs::create_dir_all(&trash).map_err(LayerError::at(&trash))?;
        let trash = Trash::start(trash.clone()).map_err(LayerError::at(&trash))?;
        let charges = Charges::of(root.as_fd()).map_err(LayerError::at(&path))?;
        // Only if the whole file system is ours.
        if let (Some(charges), Some(_)) = (&charges, group) {
            charges.sweep(root.as_fd());
        }
        Ok(Self { trash, root, path, group: group.filter(|_| charges.is_some()), charges })
    }

    pub(super) fn root(&self) -> &Path {
        &self.path
    }

    pub(super) fn path(&self, name: &TreeName) -> PathBuf {
        self.path.join(name.as_str())
    }

    pub(super) fn enforces_limits(&self) -> bool {
        self.charges.is_some()
    }

    pub(super) fn create(&self, name: &TreeName, limit: Option<u64>) -> Result<(), LayerError> {
        let limit = limit.filter(|_| self.charges.is_some());
        let make = || -> io::Result<()> {
            let quota = Quota { limit, group: self.group };
            btrfs::create_subvolume(self.root.as_fd(), name.as_str(), quota)?;
            match limit {
                Some(_) => charges::begin(self.open_tree(name)?.as_fd(), limit),
                None => Ok(()),
            }
        };
        make().map_err(LayerError::about(name))
    }

    pub(super) fn rename(&self, from: &TreeName, to: &TreeName) -> Result<(), LayerError> {
        rename_exclusively(&self.path(from), &self.path(to))
            .map_err(|error| LayerError::of_two(from, to, error))
    }

    pub(super) fn copy(
        &self,
        from: &TreeName,
        to: &TreeName,
        read_only: bool,
        limit: Option<u64>,
    ) -> Result<(), LayerError> {
        let source = self.open_tree(from).map_err(LayerError::about(from))?;
        // Read-only copies are not in the group: a pause must not fail when the group is at its limit.
        let quota = Quota { limit: None, group: self.group.filter(|_| !read_only) };
        btrfs::snapshot(self.root.as_fd(), to.as_str(), source.as_fd(), read_only, quota)
            .map_err(|error| LayerError::of_two(from, to, error))?;
        let Some(charges) = &self.charges else { return Ok(()) };
        let charged = self.open_tree(to).and_then(|copy| charges.copied(&source, &copy, limit));
        charged.map_err(|error| {
            // A copy without its limit would be a way around limits.
            let _ = self.discard(to);
            LayerError::about(to)(error)
        })
    }

    pub(super) fn discard(&self, name: &TreeName) -> Result<(), LayerError> {
        match btrfs::destroy_subvolume(self.root.as_fd(), name.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let id = self.open_tree(name).and_then(|tree| btrfs::subvolume_of(tree.as_fd()));
                if id.and_then(|tree| destroy_with_nested(self.root.as_fd(), tree.id)).is_ok() {
                    return Ok(());
                }
            }
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
        // Not a subvolume, or one that cannot be destroyed: at least its name becomes free.
        self.trash.discard(&self.path(name)).map_err(LayerError::about(name))
    }

    pub(super) fn set_limit(&self, name: &TreeName, limit: Option<u64>) -> Result<(), LayerError> {
        let tree = self.open_tree(name).map_err(LayerError::about(name))?;
        match &self.charges {
            Some(charges) => charges.set_limit(&tree, limit).map_err(LayerError::about(name)),
            None => Ok(()),
        }
    }

    pub(super) fn usage(&self, name: &TreeName) -> Result<TreeUsage, LayerError> {
        let usage = || {
            let tree = self.open_tree(name)?;
            match &self.charges {
                Some(charges) => charges.usage(&tree),
                None => Ok(TreeUsage { used: measure(tree)?.bytes, limit: None }),
            }
        };
        usage().map_err(LayerError::about(name))
    }

    fn open_tree(&self, name: &TreeName) -> io::Result<OwnedFd> {
        Ok(open_dir(&self.root, name.as_str())?)
    }
}

/// Removes a subvolume and those nested in it, innermost first. Sandboxes cannot create nested ones; an administrator may have.
fn destroy_with_nested(root: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut todo = vec![id];
    while let Some(last) = todo.last() {
        let nested = btrfs::nested_subvolumes(root, *last)?;
        if nested.is_empty() {
            btrfs::destroy_subvolume_by_id(root, *last)?;
            todo.pop();
        }
        todo.extend(nested);
    }
    Ok(())
}
