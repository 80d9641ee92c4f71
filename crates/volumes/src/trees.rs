//! [`VolumeTrees`]: the trees of volumes on disk, one writable tree for each. They are opened with the first volume, because opening
//! may make a file system.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ids::VolumeId;
use layers::{LayerError, TreeName, Trees, TreesConfig};
use parking_lot::Mutex;
use rustix::fs::AtFlags;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, chmodat, chown, openat};
use tracing::{info, warn};

use crate::content::{DEFAULT_OWNER, VolumeRoot};
use crate::error::VolumeError;

/// Everybody in a sandbox may write to a new volume.
const ROOT_MODE: Mode = Mode::from_raw_mode(0o777);

/// The size of a volume and its limit, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Size of its content.
    pub used: u64,
    /// Size at which writes fail; `None` without one, or where the file system cannot enforce it.
    pub limit: Option<u64>,
}

/// The trees of all volumes of a server.
#[derive(Debug)]
pub struct VolumeTrees {
    dir: PathBuf,
    config: TreesConfig,
    trees: Mutex<Option<Arc<Trees>>>,
}

impl VolumeTrees {
    /// Returns the trees in the directory `dir`, which need not exist.
    #[must_use]
    pub fn new(dir: &Path, config: TreesConfig) -> Self {
        Self { dir: dir.to_owned(), config, trees: Mutex::default() }
    }

    /// Removes trees of volumes that are not in `known`, as a deletion that a crash interrupted leaves one.
    pub fn sweep(&self, known: &[VolumeId]) {
        let swept = || -> Result<(), LayerError> {
            if !self.dir.exists() {
                return Ok(());
            }
            let kept: Vec<TreeName> = known.iter().copied().map(tree_of).collect();
            let trees = self.open_trees()?;
            for name in trees.list()?.into_iter().filter(|name| !kept.contains(name)) {
                info!(%name, "removing the files of a deleted volume");
                // One that cannot be removed does not keep the others.
                if let Err(error) = trees.discard(&name) {
                    warn!(%name, %error, "failed to remove the files of a deleted volume");
                }
            }
            Ok(())
        };
        if let Err(error) = swept() {
            warn!(%error, "failed to remove the files of deleted volumes");
        }
    }

    /// Creates an empty volume. Blocks.
    ///
    /// # Errors
    /// The disk is full, or no trees can be made on this host.
    pub fn create(&self, id: VolumeId, limit_mib: Option<u32>) -> Result<(), VolumeError> {
        let trees = self.open_trees()?;
        let name = tree_of(id);
        trees.create(&name, limit_mib)?;
        let path = trees.path(&name);
        let owner = (Some(Uid::from_raw(DEFAULT_OWNER)), Some(Gid::from_raw(DEFAULT_OWNER)));
        let made =
            chown(&path, owner.0, owner.1).and_then(|()| chmodat(CWD, &path, ROOT_MODE, AtFlags::empty()));
        made.map_err(|error| {
            let _ = trees.discard(&name);
            error.into()
        })
    }

    /// Creates a volume with the content that another one has at one moment. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] if there is no such volume, or the disk is full.
    pub fn copy(&self, from: VolumeId, to: VolumeId, limit_mib: Option<u32>) -> Result<(), VolumeError> {
        let trees = self.open_trees()?;
        trees.copy(&tree_of(from), &tree_of(to), false, limit_mib).map_err(no_volume)
    }

    /// Removes a volume; its space is freed in the background. Sandboxes that have it mounted find it empty. Blocks.
    ///
    /// # Errors
    /// The file system cannot be written.
    pub fn discard(&self, id: VolumeId) -> Result<(), VolumeError> {
        Ok(self.open_trees()?.discard(&tree_of(id))?)
    }

    /// Returns the size of a volume. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] if it does not exist.
    pub fn usage(&self, id: VolumeId) -> Result<VolumeUsage, VolumeError> {
        let usage = self.open_trees()?.usage(&tree_of(id)).map_err(no_volume)?;
        Ok(VolumeUsage { used: usage.used, limit: usage.limit })
    }

    /// Sets the limit of a volume; `None` removes it. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] if it does not exist.
    pub fn set_limit(&self, id: VolumeId, limit_mib: Option<u32>) -> Result<(), VolumeError> {
        self.open_trees()?.set_limit(&tree_of(id), limit_mib).map_err(no_volume)
    }

    /// Opens a volume's content. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] if it does not exist.
    pub fn open(&self, id: VolumeId) -> Result<VolumeRoot, VolumeError> {
        let trees = self.open_trees()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root: OwnedFd = match openat(CWD, trees.path(&tree_of(id)), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(VolumeError::NoVolume),
            opened => opened?,
        };
        Ok(VolumeRoot::new(root))
    }

    fn open_trees(&self) -> Result<Arc<Trees>, LayerError> {
        let mut trees = self.trees.lock();
        if let Some(trees) = &*trees {
            return Ok(Arc::clone(trees));
        }
        fs::create_dir_all(&self.dir).map_err(|source| LayerError::Io { path: self.dir.clone(), source })?;
        let opened = Arc::new(Trees::open(&self.dir, self.config)?);
        info!(storage = opened.describe(), "opened the volumes");
        *trees = Some(Arc::clone(&opened));
        Ok(opened)
    }
}

fn no_volume(error: LayerError) -> VolumeError {
    match error {
        LayerError::NoTree(_) => VolumeError::NoVolume,
        error => error.into(),
    }
}

fn tree_of(id: VolumeId) -> TreeName {
    id.to_string().parse().expect("a UUID is a valid name of a tree")
}

/// Returns a path that leads to an open file.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Returns a path that leads to an entry of an open directory.
pub(crate) fn path_in(dir: &OwnedFd, name: &CStr) -> PathBuf {
    path_of(dir.as_fd()).join(OsStr::from_bytes(name.to_bytes()))
}
