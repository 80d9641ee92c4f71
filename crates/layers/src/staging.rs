//! Places in a store to build a layer in. Each is locked for as long as somebody builds there, so that what a killed server left
//! is told from what another server is at, and removed.
//! What is in them may have come out of a sandbox, as deep and as wide as that liked: it is taken apart by the trash.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FlockOperation, flock};
use rustix::io::Errno;
use tracing::warn;

use crate::copy_tree::open_dir;
use crate::trash::Trash;

/// A directory to build a layer in; removed when dropped without being added. That does not block.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    trash: Arc<Trash>,
    _lock: OwnedFd,
}

impl Staging {
    pub(crate) fn begin(dir: &Path, trash: Arc<Trash>) -> io::Result<Self> {
        loop {
            let path = dir.join(ids::random_hex::<8>());
            fs::create_dir(&path)?;
            // A server that starts just now may take it for somebody's remains before it is locked.
            match lock(&path) {
                Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
                locked => return Ok(Self { path, trash, _lock: locked? }),
            }
        }
    }

    /// Where to build. Does not exist yet.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.join("root")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.trash.discard(&self.path) {
            warn!(path = %self.path.display(), %error, "what was staged could not be removed; the next start tries again");
        }
    }
}

/// Discards what nobody builds in any more.
pub(crate) fn sweep(dir: &Path, trash: &Trash) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match lock(&path) {
            Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
            Err(error) => warn!(path = %path.display(), %error, "not a place to build layers in"),
            Ok(_held) => trash.discard(&path)?,
        }
    }
    Ok(())
}

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
    fn remains_of_a_killed_server_go_and_what_another_builds_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let building = store.stage().unwrap();
        fs::create_dir_all(building.path().join("a")).unwrap();
        let remains = dir.path().join(STAGING).join("0123456789abcdef");
        fs::create_dir_all(remains.join("root/b")).unwrap();
        drop(LayerStore::open(dir.path()).unwrap());
        assert!(!remains.exists() && building.path().join("a").exists());
        let place = building.path.clone();
        drop(building);
        assert!(!place.exists(), "removed only later");
        drop(store);
        assert_eq!(fs::read_dir(dir.path().join(TRASH)).unwrap().count(), 0);
    }
}
