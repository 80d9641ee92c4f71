//! Reads a template's archive. Archives are untrusted: every digest is verified before a layer is added to the store.
//! A layer is always unpacked, even if the store has one with its digest: naming a digest must not be enough to get a layer.
//! The configuration is returned unchecked.

use std::path::Path;
use std::sync::Arc;

use layers::{LayerDigest, LayerStore, Staging, digest_tree};
use serde::Deserialize;

use super::{ARTIFACT, ARTIFACT_FAMILY, CONFIG, DIFF_ID, LAYER, LAYER_DIGEST};
use crate::archive::Archive;
use crate::archive::image::ImportOptions;
use crate::budget::{Budget, Metered};
use crate::compression::decompressed;
use crate::digest::{Digest, HashReader};
use crate::media::{Choice, Descriptor, choice};
use crate::unpack::{Source, Warnings, unpack};
use crate::{OciError, Phase, Progress};

/// A template from an archive, its layers in the store.
#[derive(Debug, Clone)]
pub struct Template {
    /// Uppermost first.
    pub layers: Vec<LayerDigest>,
    /// The configuration as given to the export; untrusted.
    pub config: Vec<u8>,
    /// The manifest's digest.
    pub digest: Digest,
    /// Approximate uncompressed size of all layers, bytes.
    pub size: u64,
}

/// The fields that tell the kind of a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    artifact_type: String,
}

/// Imports a template that [`super::export_template`] wrote, from a tar or a directory. Architecture and scope of
/// the options are ignored. Blocks.
///
/// # Errors
/// The archive is not a template, of another version, damaged, or too large; then no layer is added. Or the store fails.
pub fn import_template(
    store: &LayerStore,
    path: &Path,
    options: &ImportOptions,
    progress: &dyn Fn(Progress),
) -> Result<Template, OciError> {
    let room = Budget::new(options.limits, Arc::clone(&options.cancelled));
    let archive = Archive::open(path, store, &room)?;
    let no_template = || OciError::NoTemplate(path.to_owned());
    let index = archive.document("index.json")?.ok_or_else(no_template)?;
    let Choice::Index(list) = choice(&index)? else { return Err(no_template()) };
    let [descriptor] = &list[..] else { return Err(no_template()) };
    let text = archive.blob_document(descriptor)?;
    let kind: Kind = serde_json::from_slice(&text).map_err(|_| no_template())?;
    if !kind.artifact_type.starts_with(ARTIFACT_FAMILY) {
        return Err(no_template());
    }
    let Choice::Manifest(manifest) = choice(&text)? else { return Err(no_template()) };
    let types = manifest.layers.iter().map(|layer| (layer.media_type.as_str(), LAYER));
    let types =
        types.chain([(kind.artifact_type.as_str(), ARTIFACT), (manifest.config.media_type.as_str(), CONFIG)]);
    if let Some((found, expected)) = types.into_iter().find(|(found, expected)| found != expected) {
        return Err(OciError::TemplateVersion { path: path.to_owned(), found: found.to_owned(), expected });
    }
    let config = archive.blob_document(&manifest.config)?;
    for layer in &manifest.layers {
        archive.verify(layer)?;
    }
    let budget = Budget::new(options.limits, Arc::clone(&options.cancelled));
    let total = manifest.layers.len() as u64;
    let mut staged = Vec::new();
    for (done, layer) in manifest.layers.iter().enumerate() {
        progress(Progress { phase: Phase::Unpacking, done: done as u64, total });
        staged.push(stage(store, &archive, layer, &budget)?);
    }
    progress(Progress { phase: Phase::Unpacking, done: total, total });
    // Everything is verified at this point.
    let layers: Result<Vec<_>, _> = staged.iter().rev().map(|staging| store.add(staging)).collect();
    Ok(Template { layers: layers?, config, digest: descriptor.digest.clone(), size: budget.size() })
}

/// Unpacks a layer and compares its digests with those in the manifest.
fn stage(
    store: &LayerStore,
    archive: &Archive,
    layer: &Descriptor,
    budget: &Budget,
) -> Result<Staging, OciError> {
    let note = |key: &str| {
        let note = layer.annotations.get(key);
        note.ok_or_else(|| archive.malformed(&format!("layer {} lacks the note {key}", layer.digest)))
    };
    let (diff_id, digest) = (note(DIFF_ID)?, note(LAYER_DIGEST)?);
    let staging = store.stage()?;
    let root = staging.path();
    let content = archive.blob(&layer.digest)?.0;
    let mut plain = HashReader::new(Metered { inner: decompressed(content)?, budget });
    // Layers of templates do not depend on the layers below.
    unpack(&mut plain, &root, &[], Source::Template, budget, &mut Warnings::default())?;
    let found = [(plain.finish().to_string(), diff_id), (digest_tree(&root)?.to_string(), digest)];
    match found.into_iter().find(|(found, expected)| found != *expected) {
        None => Ok(staging),
        Some((found, expected)) => Err(OciError::Damaged {
            what: format!("layer {} in {}", layer.digest, archive.path().display()),
            expected: expected.clone(),
            found,
        }),
    }
}
