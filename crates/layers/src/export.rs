//! A layer made of what a sandbox has written: its upper, without what only its own overlay understands.
//! The sandbox must stand still meanwhile; what it wrote is hostile and is never followed.
//! Nothing is synced here: a layer is named by its content, which is read again when it is added to the store.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::CWD;

use crate::LayerError;
use crate::copy_tree::{Attributes, Sharing, TreeSize, copy_tree, measure, open_dir};
use crate::trash::remove_tree;

/// Copies an overlay's upper directory to `target`, which is made, as a layer for other overlays.
///
/// # Errors
/// The upper cannot be read, or there is no room for the copy; nothing is left of it then.
pub fn export_upper(upper: &Path, target: &Path) -> Result<(), LayerError> {
    let links = target.with_extension("links");
    let make = || -> io::Result<()> {
        [target, &links].into_iter().try_for_each(fs::create_dir)?;
        let (to, names) = (open_dir(CWD, target)?, open_dir(CWD, &links)?);
        copy_tree(open_dir(CWD, upper)?, to, &names, Sharing::Copy, Attributes::OfALayer)
    };
    let made = make();
    let left = remove_tree(&links);
    made.and(left).map_err(|error| {
        let _ = remove_tree(target);
        LayerError::at(target)(error)
    })
}

/// Whether a layer changes nothing.
///
/// # Errors
/// It cannot be read.
pub fn is_empty_layer(tree: &Path) -> Result<bool, LayerError> {
    let mut entries = fs::read_dir(tree).map_err(LayerError::at(tree))?;
    Ok(entries.next().is_none())
}

/// How much there is of a tree, whoever filled it.
///
/// # Errors
/// It cannot be read, or changes meanwhile.
pub fn tree_size(tree: &Path) -> Result<TreeSize, LayerError> {
    // A path that may be a link itself, such as one to a descriptor.
    let top = open_dir(CWD, tree.join(".")).map_err(LayerError::at(tree))?;
    measure(top).map_err(LayerError::at(tree))
}
