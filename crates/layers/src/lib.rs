//! What sandboxes' file systems are made of: read-only layers named by what they contain, and writable trees.
//! Both are directory trees as sandboxes see them: owners are stored as inside, root is 0. A layer never changes once it is in
//! the store. Templates list layers; engines mount them under a tree's `upper`.
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

/// What is being built.
const STAGING: &str = "staging";
/// Which layer a recipe produced.
const RECIPES: &str = "recipes";
/// What is being removed.
const TRASH: &str = "trash";

/// What can go wrong with layers and trees.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A directory or file could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a digest.
    #[error("{0:?} is not a layer digest")]
    Digest(String),
    /// Not a tree's name.
    #[error(
        "{0:?} is not a name of a writable tree: lower-case letters, digits, '-', '_' and '.', at most 100, the first a letter or digit"
    )]
    TreeName(String),
    /// No tree of this name.
    #[error("there is no writable tree {0}")]
    NoTree(TreeName),
    /// A tree of this name exists.
    #[error("writable tree {0} already exists")]
    TreeTaken(TreeName),
    /// No space for a tree.
    #[error(
        "no room for writable tree {0}: free space on the data directory's disk, end sandboxes or delete snapshots"
    )]
    Full(TreeName),
    /// Something failed with a tree.
    #[error("writable tree {name}: {source}")]
    Tree {
        /// Which one.
        name: TreeName,
        /// Why.
        source: io::Error,
    },
    /// Trees cannot be kept in this way here.
    #[error("{what}; {remedy}")]
    Backend {
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

impl LayerError {
    fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }

    /// An error of an operation on one tree.
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

    /// An error of an operation that makes `to` of `from`.
    fn of_two(from: &TreeName, to: &TreeName, source: io::Error) -> Self {
        let about = if source.kind() == io::ErrorKind::AlreadyExists { to } else { from };
        Self::about(about)(source)
    }
}

/// The layers on this machine. Several servers may share one store: layers are immutable and arrive by rename.
#[derive(Debug, Clone)]
pub struct LayerStore {
    root: PathBuf,
    trash: Arc<Trash>,
}

impl LayerStore {
    /// Opens the store, making its directories, and has removed what was staged by servers that are gone.
    ///
    /// # Errors
    /// A directory cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, LayerError> {
        for dir in [STAGING, RECIPES, TRASH] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(LayerError::at(&path))?;
        }
        let root = fs::canonicalize(root).map_err(LayerError::at(root))?;
        // Layers hold set-user-id programs that are the host's root to whoever could run them from here.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).map_err(LayerError::at(&root))?;
        let (staging, trash) = (root.join(STAGING), root.join(TRASH));
        let trash = Trash::start(trash.clone()).map_err(LayerError::at(&trash))?;
        staging::sweep(&staging, &trash).map_err(LayerError::at(&staging))?;
        Ok(Self { root, trash: Arc::new(trash) })
    }

    /// Where a layer is, present or not.
    #[must_use]
    pub fn path(&self, digest: &LayerDigest) -> PathBuf {
        self.root.join(digest.as_str())
    }

    /// Whether the layer is here.
    #[must_use]
    pub fn contains(&self, digest: &LayerDigest) -> bool {
        self.path(digest).is_dir()
    }

    /// A fresh place on the same file system to build a layer in.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn stage(&self) -> Result<Staging, LayerError> {
        let dir = self.root.join(STAGING);
        Staging::begin(&dir, self.trash.clone()).map_err(LayerError::at(&dir))
    }

    /// Takes a staged tree in. A layer that is here already is kept, and the new copy dropped.
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

    /// Takes a staged tree in that is to be mounted over the layers `below`. Overlays refuse a directory that is in them twice, so one
    /// whose content is down there already becomes a layer of its own by a mark on its root.
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

    /// The layer that a recipe produced earlier, by the recipe's own fingerprint, if both are still here.
    #[must_use]
    pub fn by_recipe(&self, fingerprint: &str) -> Option<LayerDigest> {
        let text = fs::read_to_string(self.root.join(RECIPES).join(fingerprint)).ok()?;
        text.trim().parse().ok().filter(|digest| self.contains(digest))
    }

    /// Removes layers that are neither `used` nor remembered for a recipe and that came at least `age` ago. Answers how many. Blocks.
    /// Only for whoever knows everything that uses the store.
    ///
    /// # Errors
    /// The store cannot be read, or a layer not removed.
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
            // When it was renamed into place; its own times are the content's.
            if fs::symlink_metadata(&path).map_err(LayerError::at(&path))?.ctime() > before {
                continue;
            }
            // First out of the way, so that half a layer is never found.
            let staging = self.stage()?;
            fs::rename(&path, staging.path()).map_err(LayerError::at(&path))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Remembers what a recipe produced.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn remember_recipe(&self, fingerprint: &str, digest: &LayerDigest) -> Result<(), LayerError> {
        let path = self.root.join(RECIPES).join(fingerprint);
        fs::write(&path, digest.as_str()).map_err(LayerError::at(&path))
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
