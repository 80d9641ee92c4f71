//! Unpacks the layers of an image one after the other into the layer store, each only once.
//! A layer is identified by its diff id, the digest of its uncompressed stream, which is verified before the layer is added.
//! If the result depended on the layers below, it is recorded for that layer upon those layers only.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use layers::{LayerDigest, LayerStore};
use rustix::fs::CWD;
use sha2::{Digest as _, Sha256};

use crate::OciError;
use crate::budget::{Budget, DIR, Metered};
use crate::compression::decompressed;
use crate::digest::{Digest, HashReader};
use crate::unpack::attributes::is_opaque;
use crate::unpack::lower::open_dir;
use crate::unpack::{Source, Warnings, unpack};

/// Version of the conversion; to be changed when the same stream would become another tree.
const FORM: &str = "oci-layer-1";

/// The layers of an image that were added so far.
pub(crate) struct Stack {
    store: LayerStore,
    /// The scope whose records of earlier layers are used.
    scope: String,
    budget: Budget,
    /// Uppermost first.
    layers: Vec<LayerDigest>,
    warnings: Warnings,
}

impl Stack {
    pub(crate) fn new(store: LayerStore, scope: String, budget: Budget) -> Self {
        Self { store, scope, budget, layers: Vec::new(), warnings: Warnings::default() }
    }

    /// Returns the size of all layers so far, bytes.
    pub(crate) fn size(&self) -> u64 {
        self.budget.size()
    }

    /// Adds a layer that was unpacked earlier; returns false if it was not.
    pub(crate) fn push_known(&mut self, diff_id: &Digest) -> Result<bool, OciError> {
        let Some(layer) = known(&self.store, &self.scope, &self.layers, diff_id) else { return Ok(false) };
        measure(&self.store.path(&layer), &self.budget)?;
        self.layers.insert(0, layer);
        Ok(true)
    }

    /// Unpacks a layer and adds it on top.
    pub(crate) fn push(&mut self, diff_id: &Digest, compressed: impl Read) -> Result<(), OciError> {
        let staging = self.store.stage()?;
        let below: Vec<PathBuf> =
            visible(&self.store, &self.layers)?.iter().map(|l| self.store.path(l)).collect();
        let plain = Metered { inner: decompressed(compressed)?, budget: &self.budget };
        let mut plain = HashReader::new(plain);
        let root = staging.path();
        let asked_below = unpack(&mut plain, &root, &below, Source::Image, &self.budget, &mut self.warnings)?;
        let found = plain.finish();
        if found != *diff_id {
            return Err(OciError::Damaged {
                what: "an unpacked layer of the image".to_owned(),
                expected: diff_id.to_string(),
                found: found.to_string(),
            });
        }
        let layer = self.store.add(&staging)?;
        let note =
            if asked_below { upon(&self.scope, &self.layers, diff_id) } else { alone(&self.scope, diff_id) };
        self.store.remember_recipe(&note, &layer)?;
        self.layers.insert(0, layer);
        Ok(())
    }

    pub(crate) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_vec()
    }

    /// Returns the layers to mount, uppermost first.
    pub(crate) fn finish(&self) -> Result<Vec<LayerDigest>, OciError> {
        visible(&self.store, &self.layers)
    }
}

/// Returns the layers that matter: overlayfs refuses a layer twice, and ignores that a root directory is opaque.
fn visible(store: &LayerStore, layers: &[LayerDigest]) -> Result<Vec<LayerDigest>, OciError> {
    let mut seen = HashSet::new();
    let mut kept = Vec::new();
    for layer in layers {
        // The lower one of two equal layers has no effect.
        if !seen.insert(layer) {
            continue;
        }
        kept.push(layer.clone());
        let path = store.path(layer);
        let is_opaque = open_dir(CWD, &path).and_then(|dir| is_opaque(&dir));
        if is_opaque.map_err(OciError::at(&path))? {
            break;
        }
    }
    Ok(kept)
}

/// Returns the layer that this stream became earlier.
pub(crate) fn known(
    store: &LayerStore,
    scope: &str,
    below: &[LayerDigest],
    diff_id: &Digest,
) -> Option<LayerDigest> {
    store.by_recipe(&alone(scope, diff_id)).or_else(|| store.by_recipe(&upon(scope, below, diff_id)))
}

/// Returns whether a layer was unpacked earlier independently of the layers below it.
pub(crate) fn is_known_alone(store: &LayerStore, scope: &str, diff_id: &Digest) -> bool {
    store.by_recipe(&alone(scope, diff_id)).is_some()
}

fn alone(scope: &str, diff_id: &Digest) -> String {
    note(&[FORM, scope, diff_id.hex()])
}

fn upon(scope: &str, below: &[LayerDigest], diff_id: &Digest) -> String {
    let below: Vec<&str> = below.iter().map(LayerDigest::as_str).collect();
    note(&[FORM, scope, diff_id.hex(), "upon", &below.join(" ")])
}

fn note(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Counts a layer that need not be unpacked, so that the limits apply to it too.
fn measure(root: &Path, budget: &Budget) -> Result<(), OciError> {
    let mut seen = HashSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(OciError::at(&dir))? {
            let entry = entry.map_err(OciError::at(&dir))?;
            let metadata = entry.metadata().map_err(OciError::at(&dir))?;
            budget.add_entries(1)?;
            budget.add_bytes(512)?;
            if metadata.is_dir() {
                budget.add_bytes(DIR)?;
                dirs.push(entry.path());
            } else if metadata.is_file()
                && (metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())))
            {
                budget.add_bytes(metadata.len())?;
            }
        }
    }
    Ok(())
}
