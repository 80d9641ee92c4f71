//! Directories of a store in which layers are built. Each is locked while it is in use: directories without a lock were left over by
//! a killed server and are removed; locked directories of other servers are kept.
//! Their content may come from a sandbox (any depth, any number of entries), so they are removed by way of the trash.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FlockOperation, flock};
use rustix::io::Errno;
use tracing::warn;

use crate::trash::Trash;
use walk::open_dir;

/// A directory in which a layer is built. Dropping it moves the directory to the trash, which does not block.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    trash: Arc<Trash>,
    _lock: OwnedFd,
}

impl Staging {
    /// Creates and locks a new directory in `dir`.
    pub(crate) fn begin(dir: &Path, trash: Arc<Trash>) -> io::Result<Self> {
        loop {
            let path = dir.join(ids::random_hex::<8>());
            fs::create_dir(&path)?;
            // A server that is starting may discard the directory as left over before it is locked.
            match lock(&path) {
                Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
                locked => return Ok(Self { path, trash, _lock: locked? }),
            }
        }
    }

    /// Returns the path of the layer to be built. It does not exist yet.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.join("root")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.trash.discard(&self.path) {
            warn!(path = %self.path.display(), %error, "failed to remove a staging directory; the next start tries again");
        }
    }
}

/// Discards directories that no server uses.
pub(crate) fn sweep(dir: &Path, trash: &Trash) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match lock(&path) {
            Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
            Err(error) => warn!(path = %path.display(), %error, "failed to lock a staging directory"),
            Ok(_held) => trash.discard(&path)?,
        }
    }
    Ok(())
}

/// Opens and locks a directory.
///
/// # Errors
/// `WOULDBLOCK`: it is locked already.
fn lock(path: &Path) -> Result<OwnedFd, Errno> {
    let dir = open_dir(CWD, path)?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use crate::{LayerStore, STAGING, TRASH};

    use super::*;

    #[test]
    fn unlocked_directories_are_discarded_and_locked_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let building = store.stage().unwrap();
        fs::create_dir_all(building.path().join("a")).unwrap();
        let leftover = dir.path().join(STAGING).join("0123456789abcdef");
        fs::create_dir_all(leftover.join("root/b")).unwrap();
        drop(LayerStore::open(dir.path()).unwrap());
        assert!(!leftover.exists() && building.path().join("a").exists());
        let path = building.path.clone();
        drop(building);
        assert!(!path.exists(), "the directory is moved away at once");
        drop(store);
        assert_eq!(fs::read_dir(dir.path().join(TRASH)).unwrap().count(), 0);
    }
}
