//! Writable trees as plain directories, copied file by file. A copy is made in a hidden directory, synced, and then renamed, so that it
//! appears complete. Limits are not enforced: ordinary file systems have none for directories.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::{TreeName, TreeUsage, make_private};
use crate::copy_tree::{Attributes, Sharing, copy_tree, measure};
use crate::{LayerError, Trash};
use walk::open_dir;

#[derive(Debug)]
pub(super) struct Directories {
    root: PathBuf,
    making: PathBuf,
    sharing: Sharing,
    trash: Trash,
}

impl Directories {
    pub(super) fn open(root: PathBuf, sharing: Sharing) -> Result<Self, LayerError> {
        let making = make_private(&root.join(".making"))?;
        let trash = make_private(&root.join(".trash"))?;
        let trash = Trash::start(trash.clone()).map_err(LayerError::at(&trash))?;
        let left = || -> io::Result<()> {
            fs::read_dir(&making)?.try_for_each(|entry| trash.discard(&entry?.path()))
        };
        left().map_err(LayerError::at(&making))?;
        Ok(Self { root, making, sharing, trash })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &TreeName) -> PathBuf {
        self.root.join(name.as_str())
    }

    pub(super) fn create(&self, name: &TreeName) -> Result<(), LayerError> {
        fs::create_dir(self.path(name)).map_err(LayerError::about(name))
    }

    pub(super) fn rename(&self, from: &TreeName, to: &TreeName) -> Result<(), LayerError> {
        rename_exclusively(&self.path(from), &self.path(to))
            .map_err(|error| LayerError::of_two(from, to, error))
    }

    pub(super) fn copy(&self, from: &TreeName, to: &TreeName) -> Result<(), LayerError> {
        if self.path(to).exists() {
            return Err(LayerError::TreeTaken(to.clone()));
        }
        let source = open_dir(CWD, self.path(from)).map_err(LayerError::about(from))?;
        let place = self.making.join(format!("{to}-{}", ids::random_hex::<4>()));
        let make = || -> io::Result<()> {
            let (tree, links) = (place.join("tree"), place.join("links"));
            [&place, &tree, &links].into_iter().try_for_each(fs::create_dir)?;
            let (target, names) = (open_dir(CWD, &tree)?, open_dir(CWD, &links)?);
            copy_tree(source, target, &names, self.sharing, Attributes::All)?;
            // One call for the whole file system: syncing each file would be a journal commit for each.
            syncfs(File::open(&self.root)?)?;
            rename_exclusively(&tree, &self.path(to))?;
            File::open(&self.root)?.sync_all()
        };
        let made = make();
        // What is left in it is the names of linked files, or an incomplete tree.
        let left = self.trash.discard(&place);
        made.and(left).map_err(|error| LayerError::of_two(from, to, error))
    }

    pub(super) fn discard(&self, name: &TreeName) -> Result<(), LayerError> {
        self.trash.discard(&self.path(name)).map_err(LayerError::about(name))
    }

    pub(super) fn require(&self, name: &TreeName) -> Result<(), LayerError> {
        if self.path(name).is_dir() { Ok(()) } else { Err(LayerError::NoTree(name.clone())) }
    }

    pub(super) fn usage(&self, name: &TreeName) -> Result<TreeUsage, LayerError> {
        let dir = open_dir(CWD, self.path(name)).map_err(LayerError::about(name))?;
        let used = measure(dir).map_err(LayerError::about(name))?.bytes;
        Ok(TreeUsage { used, limit: None })
    }
}

/// Renames a file or directory.
///
/// # Errors
/// `AlreadyExists`: there is a file or directory at `to`.
pub(super) fn rename_exclusively(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}
