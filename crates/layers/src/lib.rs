//! The parts of sandboxes' file systems: read-only layers, named by the digest of their content ([`LayerStore`]), and writable trees
//! ([`Trees`]). Both are directory trees with owners as seen inside the sandbox (root is 0). A layer never changes once it is in the
//! store. Templates list layers; engines mount these below the `upper` directory of a writable tree.
#![forbid(unsafe_code)]

mod compress;
mod copy_tree;
mod digest;
mod export;
mod staging;
mod stream;
mod trash;
mod trees;
mod work;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use compress::compress;
pub use copy_tree::TreeSize;
pub use digest::{LayerDigest, digest_tree};
pub use export::{export_upper, is_empty_layer, tree_size};
pub use staging::Staging;
pub use stream::{StreamLimits, read_layer, write_layer};
pub use trash::Trash;
pub use trees::{TreeName, TreeUsage, Trees, TreesBackend, TreesConfig, room_beside};
pub use work::renew_overlay_work;

/// Directory of layers that are being built.
const STAGING: &str = "staging";
/// Directory of records of the layers that recipes produced.
const RECIPES: &str = "recipes";
/// Trash directory.
const TRASH: &str = "trash";

/// Errors of layers and writable trees.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A directory or file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Directories are nested deeper than a layer may have them.
    #[error("{}…: directories are nested deeper than a layer allows (paths of 4,000 bytes); remove them first", start.display())]
    TooDeep {
        /// The beginning of the path that is too long.
        start: PathBuf,
    },
    /// The text is not a digest.
    #[error("{0:?} is not a layer digest")]
    Digest(String),
    /// The text cannot be the name of a writable tree.
    #[error(
        "{0:?} is not a name of a writable tree: lower-case letters, digits, '-', '_' and '.', at most 100, the first a letter or digit"
    )]
    TreeName(String),
    /// No writable tree has this name.
    #[error("there is no writable tree {0}")]
    NoTree(TreeName),
    /// Another writable tree has this name.
    #[error("writable tree {0} already exists")]
    TreeTaken(TreeName),
    /// The disk, or the quota of all trees, has no room for a writable tree.
    #[error(
        "no room for writable tree {0}: free space on the data directory's disk, end sandboxes or delete snapshots"
    )]
    Full(TreeName),
    /// Another operation on a writable tree failed.
    #[error("writable tree {name}: {source}")]
    Tree {
        /// The tree.
        name: TreeName,
        /// Why.
        source: io::Error,
    },
    /// The chosen backend of writable trees does not work on this host.
    #[error("{what}; {remedy}")]
    Backend {
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

impl LayerError {
    /// For `map_err`: an error of the file or directory `path`.
    fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }

    /// For `map_err`: an error of an operation on the writable tree `name`.
    fn about<E: Into<io::Error>>(name: &TreeName) -> impl FnOnce(E) -> Self {
        let name = name.clone();
        move |source| match source.into() {
            source if source.kind() == io::ErrorKind::NotFound => Self::NoTree(name),
            source if source.kind() == io::ErrorKind::AlreadyExists => Self::TreeTaken(name),
            source if matches!(source.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull) => {
                Self::Full(name)
            }
            source => Self::Tree { name, source },
        }
    }

    /// Converts an error of an operation that makes the writable tree `to` from `from`.
    fn of_two(from: &TreeName, to: &TreeName, source: io::Error) -> Self {
        let about = if source.kind() == io::ErrorKind::AlreadyExists { to } else { from };
        Self::about(about)(source)
    }
}

/// The directory of all layers of a host. Several servers may share it: layers are immutable and appear complete, by rename.
#[derive(Debug, Clone)]
pub struct LayerStore {
    root: PathBuf,
    trash: Arc<Trash>,
}

impl LayerStore {
    /// Opens the store, creating its directories if necessary, and discards staging directories that dead servers left over.
    ///
    /// # Errors
    /// A directory cannot be created or read.
    pub fn open(root: &Path) -> Result<Self, LayerError> {
        for dir in [STAGING, RECIPES, TRASH] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(LayerError::at(&path))?;
        }
        let root = fs::canonicalize(root).map_err(LayerError::at(root))?;
        // Layers contain set-user-id programs: a host user who could run them from here would become the host's root.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).map_err(LayerError::at(&root))?;
        let (staging, trash) = (root.join(STAGING), root.join(TRASH));
        let trash = Trash::start(trash.clone()).map_err(LayerError::at(&trash))?;
        staging::sweep(&staging, &trash).map_err(LayerError::at(&staging))?;
        Ok(Self { root, trash: Arc::new(trash) })
    }

    /// Returns the path of a layer, whether it exists or not.
    #[must_use]
    pub fn path(&self, digest: &LayerDigest) -> PathBuf {
        self.root.join(digest.as_str())
    }

    /// Returns whether the store has the layer.
    #[must_use]
    pub fn contains(&self, digest: &LayerDigest) -> bool {
        self.path(digest).is_dir()
    }

    /// Returns a new directory in which a layer can be built.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn stage(&self) -> Result<Staging, LayerError> {
        let dir = self.root.join(STAGING);
        Staging::begin(&dir, self.trash.clone()).map_err(LayerError::at(&dir))
    }

    /// Adds a staged tree as a layer and returns its digest. If the store has the layer already, the staged copy is not used.
    ///
    /// # Errors
    /// The tree cannot be read or moved.
    pub fn add(&self, staging: &Staging) -> Result<LayerDigest, LayerError> {
        let tree = staging.path();
        let digest = digest_tree(&tree)?;
        let target = self.path(&digest);
        match fs::rename(&tree, &target) {
            Err(error) if !target.is_dir() => Err(LayerError::at(&target)(error)),
            _ => Ok(digest),
        }
    }

    /// As [`LayerStore::add`], for a tree that will be mounted over the layers `below`. Overlayfs refuses a directory that is in a stack
    /// twice, so a tree with the same content as one of these gets a mark on its root, and with it a digest of its own.
    ///
    /// # Errors
    /// The tree cannot be read, marked or moved.
    pub fn add_on(&self, staging: &Staging, below: &[String]) -> Result<LayerDigest, LayerError> {
        const MARK: &str = "trusted.cofferdam.again";
        let tree = staging.path();
        for times in 1u32.. {
            let digest = digest_tree(&tree)?;
            if !below.iter().any(|layer| layer == digest.as_str()) {
                break;
            }
            let mark = times.to_le_bytes();
            rustix::fs::setxattr(&tree, MARK, &mark, rustix::fs::XattrFlags::empty())
                .map_err(LayerError::at(&tree))?;
        }
        self.add(staging)
    }

    /// Returns the layer that the recipe with this fingerprint produced earlier, if the store still has it.
    #[must_use]
    pub fn by_recipe(&self, fingerprint: &str) -> Option<LayerDigest> {
        let text = fs::read_to_string(self.root.join(RECIPES).join(fingerprint)).ok()?;
        text.trim().parse().ok().filter(|digest| self.contains(digest))
    }

    /// Removes layers that are neither in `used` nor recorded for a recipe and that were added at least `age` ago; returns their number.
    /// Blocks. The caller must know all users of the store.
    ///
    /// # Errors
    /// The store cannot be read, or a layer cannot be removed.
    pub fn remove_unused(&self, used: &HashSet<String>, age: Duration) -> Result<usize, LayerError> {
        let recipes = self.root.join(RECIPES);
        let notes = fs::read_dir(&recipes).map_err(LayerError::at(&recipes))?.flatten();
        let remembered: HashSet<String> =
            notes.filter_map(|note| Some(fs::read_to_string(note.path()).ok()?.trim().to_owned())).collect();
        let before = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let before = before.map_or(0, |at| i64::try_from(at.as_secs()).unwrap_or(i64::MAX));
        let mut removed = 0;
        for entry in fs::read_dir(&self.root).map_err(LayerError::at(&self.root))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<LayerDigest>().is_err() || used.contains(&name) || remembered.contains(&name) {
                continue;
            }
            let path = entry.path();
            // The time of the rename into the store; the modification time belongs to the content.
            if fs::symlink_metadata(&path).map_err(LayerError::at(&path))?.ctime() > before {
                continue;
            }
            // Moved away first, so that a partly removed layer is never found in the store.
            let staging = self.stage()?;
            fs::rename(&path, staging.path()).map_err(LayerError::at(&path))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Records which layer a recipe produced.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn remember_recipe(&self, fingerprint: &str, digest: &LayerDigest) -> Result<(), LayerError> {
        let path = self.root.join(RECIPES).join(fingerprint);
        fs_atomic::write(&path, digest.as_str(), fs_atomic::Options::DEFAULT).map_err(LayerError::at(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_is_the_same_layer() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path()).unwrap();
        let make = |content: &str| {
            let staging = store.stage().unwrap();
            fs::create_dir_all(staging.path().join("a")).unwrap();
            fs::write(staging.path().join("a/file"), content).unwrap();
            store.add(&staging).unwrap()
        };
        let first = make("x");
        assert_eq!(make("x"), first);
        assert_ne!(make("y"), first);
        assert_eq!(fs::read_to_string(store.path(&first).join("a/file")).unwrap(), "x");
        store.remember_recipe("r", &first).unwrap();
        assert_eq!(store.by_recipe("r"), Some(first.clone()));
        assert_eq!(store.by_recipe("s"), None);
        let staging = store.stage().unwrap();
        fs::create_dir_all(staging.path().join("a")).unwrap();
        fs::write(staging.path().join("a/file"), "x").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(staging.path().join("a/file"), "user.note", b"other", flags).unwrap();
        assert_ne!(store.add(&staging).unwrap(), first, "attributes are part of the content");

        let mut stack: Vec<String> = vec![first.to_string()];
        for _ in 0..3 {
            let staging = store.stage().unwrap();
            fs::create_dir_all(staging.path().join("a")).unwrap();
            fs::write(staging.path().join("a/file"), "x").unwrap();
            let again = store.add_on(&staging, &stack).unwrap().to_string();
            assert!(!stack.contains(&again), "a layer is twice in a stack");
            stack.push(again);
        }
        drop(staging);
        let (used, unused) = (stack[1].clone(), stack[2].clone());
        assert_eq!(store.remove_unused(&HashSet::from([used.clone()]), Duration::from_secs(60)).unwrap(), 0);
        assert!(store.remove_unused(&HashSet::from([used.clone()]), Duration::ZERO).unwrap() > 0);
        let is_here = |digest: &str| store.contains(&digest.parse().unwrap());
        assert!(is_here(&used) && is_here(first.as_str()) && !is_here(&unused));
        assert_eq!(fs::read_dir(dir.path().join(STAGING)).unwrap().count(), 0);
        assert_eq!(
            fs::metadata(dir.path()).unwrap().permissions().mode() & 0o077,
            0,
            "other users can reach layers"
        );
    }
}
