//! Read-only file system layers, named by what they contain.
//! A layer is a folder tree as sandboxes see it: owners are stored as inside, root is 0. It never changes once it is in the store.
//! Templates list layers; engines mount them; nothing here mounts anything.
#![forbid(unsafe_code)]

mod digest;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use digest::{LayerDigest, digest_tree};

/// What can go wrong with layers.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A folder or file could not be used.
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
}

impl LayerError {
    fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }
}

/// The layers on this machine. Several servers may share one store: layers are immutable and arrive by rename.
#[derive(Debug, Clone)]
pub struct LayerStore {
    root: PathBuf,
}

/// A folder to build a layer in; removed when dropped without being added.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Where to build. Does not exist yet.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.join("root")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl LayerStore {
    /// Opens the store, making its folders.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path) -> Result<Self, LayerError> {
        for folder in ["staging", "recipes"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(LayerError::at(&path))?;
        }
        let root = fs::canonicalize(root).map_err(LayerError::at(root))?;
        // Layers hold set-user-id programs that are the host's root to whoever could run them from here.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).map_err(LayerError::at(&root))?;
        Ok(Self { root })
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
    /// The folder cannot be made.
    pub fn stage(&self) -> Result<Staging, LayerError> {
        let path = self.root.join("staging").join(ids::random_hex::<8>());
        fs::create_dir(&path).map_err(LayerError::at(&path))?;
        Ok(Staging { path })
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

    /// The layer that a recipe produced earlier, by the recipe's own fingerprint, if both are still here.
    #[must_use]
    pub fn by_recipe(&self, fingerprint: &str) -> Option<LayerDigest> {
        let text = fs::read_to_string(self.root.join("recipes").join(fingerprint)).ok()?;
        text.trim().parse().ok().filter(|digest| self.contains(digest))
    }

    /// Remembers what a recipe produced.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn remember_recipe(&self, fingerprint: &str, digest: &LayerDigest) -> Result<(), LayerError> {
        let path = self.root.join("recipes").join(fingerprint);
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
        assert_eq!(store.by_recipe("r"), Some(first));
        assert_eq!(store.by_recipe("s"), None);
        assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
        assert_eq!(
            fs::metadata(dir.path()).unwrap().permissions().mode() & 0o077,
            0,
            "other users can reach layers"
        );
    }
}
