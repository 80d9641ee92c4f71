//! Container images as a base: pulled from their registry, layer by layer, into the layer store.
//! What is in one is hostile until it is in a sandbox; `oci` unpacks it so that it cannot matter.
//! A Debian release can be made from its packages where no registry can be reached, and the log says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci::{Credentials, OciError, Phase, Progress, PullOptions, Reference};
use template::Recipe;

use super::base::Pulled;
use super::failure::Failure;
use super::start::RegistryAuth;
use super::worker::Work;
use crate::LogLevel;

/// Percent from one line about a download to the next.
const TELL_EVERY: u64 = 10;

/// Pulls an image.
pub(super) async fn pull(work: &Work, image: &str) -> Result<Pulled, Failure> {
    let reference: Reference = image.parse().map_err(|error: OciError| Failure::new(error.to_string()))?;
    let options = PullOptions {
        registries: work.control.config.registries.clone(),
        credentials: credentials(work.spec.registry.as_ref()),
        // A private image's layers are its owner's: no other team may learn them by their digests.
        scope: work.team.id.to_string(),
        ..PullOptions::default()
    };
    let told = AtomicU64::new(0);
    let tell = |progress: Progress| {
        if progress.phase != Phase::Fetching || progress.total == 0 {
            return;
        }
        let percent = progress.done * 100 / progress.total / TELL_EVERY * TELL_EVERY;
        if told.fetch_max(percent, Ordering::Relaxed) < percent {
            let total = progress.total >> 20;
            work.say(LogLevel::Debug, "base", format!("[base] {percent} % of {total} MiB fetched"));
        }
    };
    match oci::pull(&work.layers, &reference, &options, &tell).await {
        Ok(image) => {
            for warning in &image.warnings {
                work.say(LogLevel::Warn, "base", format!("[base] {warning}"));
            }
            let layers = image.layers.iter().map(ToString::to_string).collect();
            Ok(Pulled { layers, env: image.env.into_iter().collect() })
        }
        Err(error) => match Recipe::debian(&reference_name(&reference)) {
            Some(recipe) if is_out_of_reach(&error) => bootstrap(work, image, recipe, &error).await,
            _ => Err(Failure::new(error.to_string())),
        },
    }
}

/// Whether no registry answers, whatever the image.
fn is_out_of_reach(error: &OciError) -> bool {
    matches!(error, OciError::Unreachable { .. })
}

/// `library/debian:trixie`, if it is of the registry that the short name means.
fn reference_name(reference: &Reference) -> String {
    let registry = if reference.registry() == "docker.io" { "" } else { reference.registry() };
    format!("{registry}{}:{}", reference.repository(), reference.tag().unwrap_or("latest"))
}

async fn bootstrap(work: &Work, image: &str, recipe: Recipe, why: &OciError) -> Result<Pulled, Failure> {
    work.say(LogLevel::Warn, "base", format!("[base] {image} is made from Debian packages, because {why}"));
    let (store, job) = (work.layers.clone(), Arc::clone(&work.job));
    let built = tokio::task::spawn_blocking(move || {
        let mut stage = String::new();
        template::build(&recipe, &store, &mut |progress| {
            if progress.stage != stage {
                job.log.say(LogLevel::Debug, Some("base"), format!("[base] {}", progress.stage));
                stage = progress.stage;
            }
        })
    });
    let built = built.await.map_err(|_| Failure::new("the bootstrap's task ended abnormally"))?;
    let built = built.map_err(|error| Failure::new(error.to_string()))?;
    Ok(Pulled { layers: vec![built.layer.to_string()], env: [].into() })
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
