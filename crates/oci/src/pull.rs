//! Pulls an image: manifest, configuration, then layers, fetched several at a time and unpacked in order.
//! A blob is stored in a file and verified before it is unpacked. When the caller drops the future, downloads end at once and unpacking
//! at its next read.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::stream::FuturesOrdered;
use futures::{FutureExt, TryStreamExt};
use layers::{LayerDigest, LayerStore, Staging};
use tokio::sync::mpsc;

use crate::assemble::{Stack, is_known_alone};
use crate::budget::Budget;
use crate::digest::Digest;
use crate::media::{Choice, Config, Descriptor, Manifest, choice, host_architecture, pick};
use crate::reference::Reference;
use crate::registry::{Credentials, Registries, Repository};
use crate::{Limits, OciError};

/// Maximum number of blobs that are fetched at a time.
const MAX_DOWNLOADS: usize = 3;

/// Options of a pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The operator's settings of registries, such as mirrors.
    pub registries: Registries,
    /// Credentials for the image's registry.
    pub credentials: Credentials,
    /// Maximum size of the image.
    pub limits: Limits,
    /// The architecture, as named in images: `amd64` or `arm64`.
    pub architecture: String,
    /// Layers that were unpacked earlier in the same scope are not fetched again. A user of the same scope can get a layer by
    /// knowing its digest, so give every team its own scope.
    pub scope: String,
}

impl Default for PullOptions {
    /// Anonymous, without mirrors, for the host's architecture.
    fn default() -> Self {
        Self {
            registries: Registries::default(),
            credentials: Credentials::default(),
            limits: Limits::default(),
            architecture: host_architecture().to_owned(),
            scope: String::new(),
        }
    }
}

/// Progress of a pull or import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// What is done: bytes while fetching, layers while unpacking.
    pub done: u64,
    /// The total, in the same unit.
    pub total: u64,
}

/// Phases of a pull, which overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Layers are fetched from the registry.
    Fetching,
    /// Layers are unpacked.
    Unpacking,
}

/// An image in the layer store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its layers, uppermost first, as overlayfs takes them.
    pub layers: Vec<LayerDigest>,
    /// Its environment variables; those without a value are left out.
    pub env: Vec<(String, String)>,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its configuration as JSON, for the caller to read user or command.
    pub config: serde_json::Value,
    /// Approximate uncompressed size of all layers, bytes.
    pub size: u64,
    /// What was changed or left out when the image was unpacked: at most 20 messages, none for cached layers.
    pub warnings: Vec<String>,
}

/// Pulls an image and unpacks the layers that the store does not have.
///
/// # Errors
/// The image is not accessible, for another architecture, damaged, too large, or invalid.
pub async fn pull(
    store: &LayerStore,
    reference: &Reference,
    options: &PullOptions,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Image, OciError> {
    let repository = Repository::open(options.registries.clone(), reference, &options.credentials).await?;
    let (manifest, digest) = manifest(&repository, reference, &options.architecture).await?;
    let config_text = repository.document(&manifest.config).await?;
    let config = Config::parse(&config_text, &options.architecture)?;
    let diff_ids = config.diff_ids(manifest.layers.len())?;
    let size = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if size > options.limits.size {
        return Err(OciError::TooLarge { size, limit: options.limits.size });
    }

    let cancel = CancelOnDrop(Arc::default());
    let budget = Budget::new(options.limits, Arc::clone(&cancel.0));
    let stack = Stack::new(store.clone(), options.scope.clone(), budget);
    let count = diff_ids.len();
    let unpacked = |done: usize| {
        progress(Progress { phase: Phase::Unpacking, done: done as u64, total: count as u64 });
    };
    let (stack, known) = push_known(stack, diff_ids.clone()).await?;
    unpacked(known);
    let new: Vec<Layer> = manifest.layers.into_iter().zip(diff_ids).skip(known).collect();
    let (send, receive) = mpsc::channel(new.len().max(1));
    let fetching = fetch(&repository, store, &options.scope, &new, send, progress);
    let unpacking = unpack(stack, &repository, store, &new, receive, |done| unpacked(known + done));
    let ((), stack) = tokio::try_join!(fetching, unpacking)?;
    Ok(Image {
        layers: stack.finish()?,
        env: config.env(),
        architecture: options.architecture.clone(),
        digest,
        config: serde_json::from_slice(&config_text).unwrap_or_default(),
        size: stack.size(),
        warnings: stack.into_warnings(),
    })
}

/// A blob and the digest of its uncompressed content.
type Layer = (Descriptor, Digest);

/// Cancels unpacking when the pull is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fetches the manifest for the architecture; returns it with its digest.
async fn manifest(
    repository: &Repository,
    reference: &Reference,
    architecture: &str,
) -> Result<(Manifest, Digest), OciError> {
    let (text, digest) = repository.manifest(&reference.version()).await?;
    let list = match choice(&text)? {
        Choice::Manifest(manifest) => return Ok((manifest, digest)),
        Choice::Index(list) => list,
    };
    let (text, digest) = repository.manifest(&pick(&list, architecture)?.digest.to_string()).await?;
    match choice(&text)? {
        Choice::Manifest(manifest) => Ok((manifest, digest)),
        Choice::Index(_) => {
            Err(OciError::malformed("the image's index", &"it lists another index for this platform"))
        }
    }
}

/// Adds the lowermost layers to the stack that were unpacked earlier; returns their number.
async fn push_known(mut stack: Stack, ids: Vec<Digest>) -> Result<(Stack, usize), OciError> {
    blocking(move || {
        let mut count = 0;
        while count < ids.len() && stack.push_known(&ids[count])? {
            count += 1;
        }
        Ok((stack, count))
    })
    .await
}

/// Fetches the other layers into files, and sends these in order.
async fn fetch(
    repository: &Repository,
    store: &LayerStore,
    scope: &str,
    layers: &[Layer],
    send: mpsc::Sender<Option<Staging>>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), OciError> {
    let is_wanted: Vec<bool> = layers.iter().map(|(_, id)| !is_known_alone(store, scope, id)).collect();
    let wanted = layers.iter().zip(&is_wanted).filter(|(_, is_wanted)| **is_wanted);
    let total = wanted.map(|((blob, _), _)| blob.size).sum();
    let done = AtomicI64::new(0);
    let count = |bytes: i64| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress(Progress { phase: Phase::Fetching, done: u64::try_from(done).unwrap_or(0), total });
    };
    count(0);
    let mut fetches = FuturesOrdered::new();
    let mut ahead = layers.iter().zip(is_wanted);
    loop {
        for ((blob, _), is_wanted) in ahead.by_ref().take(MAX_DOWNLOADS - fetches.len()) {
            let count = &count;
            let fetch = async move {
                if is_wanted { fetch_one(repository, store, blob, count).await.map(Some) } else { Ok(None) }
            };
            fetches.push_back(fetch.boxed());
        }
        let Some(file) = fetches.try_next().await? else { break };
        // The receiver is dropped only if unpacking failed, and that error is reported.
        if send.send(file).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn fetch_one(
    repository: &Repository,
    store: &LayerStore,
    blob: &Descriptor,
    count: &(dyn Fn(i64) + Send + Sync),
) -> Result<Staging, OciError> {
    let staging = store.stage()?;
    repository.blob(blob, &staging.path(), count).await?;
    Ok(staging)
}

/// Unpacks the fetched layers in order.
async fn unpack(
    mut stack: Stack,
    repository: &Repository,
    store: &LayerStore,
    layers: &[Layer],
    mut receive: mpsc::Receiver<Option<Staging>>,
    report: impl Fn(usize),
) -> Result<Stack, OciError> {
    for (done, (blob, id)) in layers.iter().enumerate() {
        let Some(file) = receive.recv().await else { break };
        let id = id.clone();
        let (back, is_done, id) = blocking(move || {
            if stack.push_known(&id)? {
                return Ok((stack, true, id));
            }
            if let Some(file) = &file {
                push_file(&mut stack, &id, file)?;
            }
            Ok((stack, file.is_some(), id))
        })
        .await?;
        stack = back;
        if !is_done {
            // Removed from the store since it was found there.
            let file = fetch_one(repository, store, blob, &|_| {}).await?;
            stack = blocking(move || {
                push_file(&mut stack, &id, &file)?;
                Ok(stack)
            })
            .await?;
        }
        report(done + 1);
    }
    Ok(stack)
}

fn push_file(stack: &mut Stack, id: &Digest, file: &Staging) -> Result<(), OciError> {
    let path = file.path();
    stack.push(id, File::open(&path).map_err(OciError::at(&path))?)
}

/// Runs a blocking function on a thread for such.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, OciError> + Send + 'static,
) -> Result<T, OciError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OciError::Cancelled),
    }
}
