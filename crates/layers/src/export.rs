//! Copies what a sandbox has written, the upper directory of its overlay, as a layer for other overlays: without attributes that only
//! its own overlay understands.
//! The sandbox must be frozen meanwhile. Its files are untrusted, so nothing in them is followed.
//! Nothing is synced here: the store reads all content again to compute the layer's digest.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::CWD;

use crate::LayerError;
use walk::open_dir;

use crate::copy_tree::{Attributes, Sharing, TreeSize, copy_tree, measure};
use crate::trash::remove_tree;

/// Copies an overlay's upper directory to the new directory `target`, as a layer for other overlays.
///
/// # Errors
/// The upper directory cannot be read, or there is no room for the copy; then `target` is removed.
pub fn export_upper(upper: &Path, target: &Path) -> Result<(), LayerError> {
    let links = target.with_extension("links");
    let make = || -> io::Result<()> {
        [target, &links].into_iter().try_for_each(fs::create_dir)?;
        let (to, names) = (open_dir(CWD, target)?, open_dir(CWD, &links)?);
        copy_tree(open_dir(CWD, upper)?, to, &names, Sharing::Copy, Attributes::ForLayer)
    };
    let made = make();
    let left = remove_tree(&links);
    made.and(left).map_err(|error| {
        let _ = remove_tree(target);
        LayerError::at(target)(error)
    })
}

/// Returns whether a layer is empty.
///
/// # Errors
/// The layer cannot be read.
pub fn is_empty_layer(tree: &Path) -> Result<bool, LayerError> {
    let mut entries = fs::read_dir(tree).map_err(LayerError::at(tree))?;
    Ok(entries.next().is_none())
}

/// Returns the size of a tree, which may be untrusted.
///
/// # Errors
/// The tree cannot be read, or changes meanwhile.
pub fn tree_size(tree: &Path) -> Result<TreeSize, LayerError> {
    // With `.`, as the path itself may be a link, such as one to a descriptor.
    let top = open_dir(CWD, tree.join(".")).map_err(LayerError::at(tree))?;
    measure(top).map_err(LayerError::at(tree))
}
