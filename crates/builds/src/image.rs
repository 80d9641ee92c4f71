//! Pulls container images from their registry into the layer store. Images are untrusted; `oci` unpacks them safely.
//! Where no registry can be reached, a Debian release is bootstrapped from its packages instead, and the build's log says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logs::LogLevel;
use oci::{Credentials, OciError, Phase, Progress, PullOptions, Reference};
use template::Recipe;

use super::StepFailure;
use super::error::ON_THE_HOST;
use super::spec::RegistryAuth;
use super::task::BuildTask;

/// Progress of a download between two log lines, percent.
const LOG_EVERY: u64 = 10;

/// An image in the layer store.
#[derive(Debug)]
pub(crate) struct UnpackedImage {
    /// Layer digests, uppermost first.
    pub(crate) layers: Vec<String>,
    /// The image's environment variables.
    pub(crate) env: BTreeMap<String, String>,
}

/// Pulls an image.
pub(crate) async fn pull(task: &BuildTask, image: &str) -> Result<UnpackedImage, StepFailure> {
    let reference: Reference =
        image.parse().map_err(|error: OciError| StepFailure::new(error.to_string()))?;
    let options = PullOptions {
        registries: task.builds.config.registries.clone(),
        credentials: credentials(task.spec.registry.as_ref()),
        // Layers of a private image belong to one team: another must not get them by naming their digests.
        scope: task.team.id.to_string(),
        ..PullOptions::default()
    };
    let logged = AtomicU64::new(0);
    let log = |progress: Progress| {
        if progress.phase != Phase::Fetching || progress.total == 0 {
            return;
        }
        let percent = progress.done * 100 / progress.total / LOG_EVERY * LOG_EVERY;
        if logged.fetch_max(percent, Ordering::Relaxed) < percent {
            let total = progress.total >> 20;
            task.log(LogLevel::Debug, "base", format!("[base] {percent} % of {total} MiB fetched"));
        }
    };
    match oci::pull(&task.layers, &reference, &options, &log).await {
        Ok(image) => {
            for warning in &image.warnings {
                task.log(LogLevel::Warn, "base", format!("[base] {warning}"));
            }
            let layers = image.layers.iter().map(ToString::to_string).collect();
            Ok(UnpackedImage { layers, env: image.env.into_iter().collect() })
        }
        Err(error) => match Recipe::debian(&reference_name(&reference)) {
            Some(recipe) if is_unreachable(&error) => bootstrap(task, image, recipe, &error).await,
            _ => Err(error.into()),
        },
    }
}

/// Returns whether the registry could not be reached at all.
fn is_unreachable(error: &OciError) -> bool {
    matches!(error, OciError::Unreachable { .. } | OciError::NoAddress { is_internal: false, .. })
}

/// Returns `repository:tag`, such as `library/debian:trixie`; images of other registries than Docker Hub have its name in front.
fn reference_name(reference: &Reference) -> String {
    let registry = if reference.registry() == "docker.io" { "" } else { reference.registry() };
    format!("{registry}{}:{}", reference.repository(), reference.tag().unwrap_or("latest"))
}

async fn bootstrap(
    task: &BuildTask,
    image: &str,
    recipe: Recipe,
    why: &OciError,
) -> Result<UnpackedImage, StepFailure> {
    task.log(LogLevel::Warn, "base", format!("[base] {image} is made from Debian packages, because {why}"));
    let (store, job) = (task.layers.clone(), Arc::clone(&task.job));
    let built = tokio::task::spawn_blocking(move || {
        let mut stage = String::new();
        template::build(&recipe, &store, &mut |progress| {
            if progress.stage != stage {
                job.log.add(LogLevel::Debug, Some("base"), format!("[base] {}", progress.stage));
                stage = progress.stage;
            }
        })
    });
    let built = built.await.map_err(|_| StepFailure::new("the bootstrap's task ended abnormally"))?;
    let built = built.map_err(|error| {
        tracing::warn!(build_id = %task.record.id, %error, "failed to make an image from Debian packages");
        StepFailure::new(ON_THE_HOST)
    })?;
    Ok(UnpackedImage { layers: vec![built.layer.to_string()], env: [].into() })
}

fn credentials(auth: Option<&RegistryAuth>) -> Credentials {
    match auth.cloned() {
        None => Credentials::Anonymous,
        Some(RegistryAuth::Basic { username, password }) => Credentials::Basic { username, password },
        Some(RegistryAuth::Aws { key_id, secret, region }) => {
            Credentials::Aws { access_key_id: key_id, secret_access_key: secret, region }
        }
        Some(RegistryAuth::Gcp { service_account }) => {
            Credentials::Gcp { service_account_json: service_account }
        }
    }
}
