//! Imports images from archives: OCI layouts, and archives of `docker save`.
//! The same checks apply as for registries: digests, lengths, architecture, limits. If an archive contains several images, the caller
//! names one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use layers::LayerStore;
use serde::Deserialize;

use super::Archive;
use crate::assemble::Stack;
use crate::budget::Budget;
use crate::digest::Digest;
use crate::media::{Choice, Config, Descriptor, choice, host_architecture, pick};
use crate::{Image, Limits, OciError, Phase, Progress, Reference};

/// Annotations of an index with the name of an image; containerd's is the full form.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Options of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Maximum size of the image or template.
    pub limits: Limits,
    /// The architecture, as named in images: `amd64` or `arm64`.
    pub architecture: String,
    /// As in [`crate::PullOptions::scope`].
    pub scope: String,
    /// Set by the caller to cancel the import.
    pub cancelled: Arc<AtomicBool>,
}

impl Default for ImportOptions {
    /// For the host's architecture.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            architecture: host_architecture().to_owned(),
            scope: String::new(),
            cancelled: Arc::default(),
        }
    }
}

/// Imports an image from an OCI layout (a directory, a tar, a compressed tar) or from an archive of `docker save`. `name` selects
/// one of several images. Blocks.
///
/// # Errors
/// There is no such image, or it is for another architecture, damaged, too large, or invalid.
pub fn import_image(
    store: &LayerStore,
    path: &Path,
    name: Option<&str>,
    options: &ImportOptions,
    progress: &dyn Fn(Progress),
) -> Result<Image, OciError> {
    let room = Budget::new(options.limits, Arc::clone(&options.cancelled));
    let archive = Archive::open(path, store, &room)?;
    let found = match archive.document("index.json")? {
        Some(index) => of_layout(&archive, &index, name, &options.architecture)?,
        None => match archive.document("manifest.json")? {
            Some(manifest) => of_docker(&archive, &manifest, name)?,
            None => return Err(OciError::NoImage(path.to_owned())),
        },
    };
    let config = Config::parse(&found.config, &options.architecture)?;
    let diff_ids = config.diff_ids(found.layers.len())?;
    let budget = Budget::new(options.limits, Arc::clone(&options.cancelled));
    let mut stack = Stack::new(store.clone(), options.scope.clone(), budget);
    let total = diff_ids.len() as u64;
    for (done, (layer, diff_id)) in found.layers.iter().zip(&diff_ids).enumerate() {
        progress(Progress { phase: Phase::Unpacking, done: done as u64, total });
        if stack.push_known(diff_id)? {
            continue;
        }
        let content = match layer {
            Layer::Blob(descriptor) => {
                archive.verify(descriptor)?;
                archive.blob(&descriptor.digest)?.0
            }
            Layer::File(name) => {
                let file = archive.file(name)?;
                file.ok_or_else(|| archive.malformed(&format!("it lacks the layer {name}")))?.0
            }
        };
        stack.push(diff_id, content)?;
    }
    progress(Progress { phase: Phase::Unpacking, done: total, total });
    Ok(Image {
        layers: stack.finish()?,
        env: config.env(),
        architecture: options.architecture.clone(),
        digest: found.digest,
        config: serde_json::from_slice(&found.config).unwrap_or_default(),
        size: stack.size(),
        warnings: stack.into_warnings(),
    })
}

struct Found {
    config: Vec<u8>,
    layers: Vec<Layer>,
    digest: Digest,
}

enum Layer {
    Blob(Descriptor),
    /// A layer identified by its diff id only.
    File(String),
}

fn of_layout(
    archive: &Archive,
    index: &[u8],
    name: Option<&str>,
    architecture: &str,
) -> Result<Found, OciError> {
    let Choice::Index(list) = choice(index)? else {
        return Err(archive.malformed("its index.json is no index"));
    };
    let list = named(archive, list, name)?;
    let mut descriptor = match &list[..] {
        [only] => only.clone(),
        several => pick(several, architecture)?.clone(),
    };
    let mut read = choice(&archive.blob_document(&descriptor)?)?;
    if let Choice::Index(list) = &read {
        descriptor = pick(list, architecture)?.clone();
        read = choice(&archive.blob_document(&descriptor)?)?;
    }
    let Choice::Manifest(manifest) = read else {
        return Err(archive.malformed("its indexes are nested too deep"));
    };
    let config = archive.blob_document(&manifest.config)?;
    let layers = manifest.layers.into_iter().map(Layer::Blob).collect();
    Ok(Found { config, layers, digest: descriptor.digest })
}

/// Returns the entries of the requested image, or of the only one.
fn named(archive: &Archive, list: Vec<Descriptor>, name: Option<&str>) -> Result<Vec<Descriptor>, OciError> {
    let name_of = |item: &Descriptor| NAMES.iter().find_map(|key| item.annotations.get(*key)).cloned();
    let mut names: Vec<String> = list.iter().filter_map(name_of).collect();
    names.sort_unstable();
    names.dedup();
    let path = archive.path().to_owned();
    let Some(name) = name else {
        return match names.len() {
            _ if list.is_empty() => Err(OciError::NoImage(path)),
            0 | 1 => Ok(list),
            _ => Err(OciError::SeveralImages { path, names }),
        };
    };
    let is_it = |item: &Descriptor| {
        let known = NAMES.iter().filter_map(|key| item.annotations.get(*key));
        known.into_iter().any(|known| is_same(known, name))
    };
    let chosen: Vec<Descriptor> = list.into_iter().filter(is_it).collect();
    if chosen.is_empty() {
        Err(OciError::NoSuchImage { path, name: name.to_owned(), names })
    } else {
        Ok(chosen)
    }
}

/// Returns whether two names refer to the same image, by their full forms.
fn is_same(known: &str, wanted: &str) -> bool {
    let full = |name: &str| name.parse::<Reference>().ok().map(|reference| reference.to_string());
    known == wanted || full(known).is_some_and(|known| Some(known) == full(wanted))
}

/// An image in the manifest of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn of_docker(archive: &Archive, manifest: &[u8], name: Option<&str>) -> Result<Found, OciError> {
    let list: Vec<Saved> = serde_json::from_slice(manifest)
        .map_err(|error| archive.malformed(&format!("its manifest.json: {error}")))?;
    let path = archive.path().to_owned();
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let names: Vec<String> = list.iter().flat_map(tags).collect();
    let chosen = match (name, &list[..]) {
        (None, []) => return Err(OciError::NoImage(path)),
        (None, [only]) => only,
        (None, _) => return Err(OciError::SeveralImages { path, names }),
        (Some(name), list) => {
            let found = list.iter().find(|saved| tags(saved).iter().any(|tag| is_same(tag, name)));
            found.ok_or_else(|| OciError::NoSuchImage { path, name: name.to_owned(), names })?
        }
    };
    let config = archive.document(&chosen.config)?;
    let config = config.ok_or_else(|| archive.malformed(&format!("it lacks {}", chosen.config)))?;
    let layers = chosen.layers.iter().map(|name| Layer::File(name.clone())).collect();
    // Docker's image id.
    Ok(Found { digest: Digest::of(&config), config, layers })
}
