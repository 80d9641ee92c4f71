//! Removes what has not been used for long: logs, uploads, results of steps, and layers.

use std::collections::HashSet;
use std::time::Duration;

use super::{Builds, cache, uploads};

/// A layer younger than this may belong to a build in progress.
const MIN_LAYER_AGE: Duration = Duration::from_secs(2 * 24 * 3600);
/// How long the result of a step is kept after its last use.
const CACHE_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the Dockerfile of a build that is not started is kept.
const PLAN_RETENTION: Duration = Duration::from_secs(2 * 24 * 3600);
/// How long an uploaded archive is kept after its last use.
const ARCHIVE_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

impl Builds {
    /// Removes old logs, uploads and results of steps, and layers that nothing refers to.
    pub async fn remove_unused(&self) {
        let Ok((dirs, store)) = self.workspace() else { return };
        let retention = self.config.retention;
        // The references are read before the layers are listed: a layer that is referred to only afterwards is younger than
        // MIN_LAYER_AGE.
        let used = if self.config.owns_layers { self.layers_in_use().await } else { None };
        let remove = move || {
            dirs.logs().forget(retention);
            uploads::remove_expired_parts(&dirs.files(), std::time::SystemTime::now());
            cache::remove_unused(&dirs.files(), ARCHIVE_RETENTION);
            cache::remove_unused(&dirs.cache(), CACHE_RETENTION);
            cache::remove_unused(&dirs.plans(), PLAN_RETENTION);
            let Some(mut used) = used else { return };
            used.extend(cache::layers(&dirs.cache()));
            match store.remove_unused(&used, MIN_LAYER_AGE) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed unused layers"),
                Err(error) => tracing::warn!(%error, "failed to remove unused layers"),
            }
        };
        let _ = tokio::task::spawn_blocking(remove).await;
    }

    /// Returns the layers of every build and of every sandbox that has not ended; none when the store failed.
    async fn layers_in_use(&self) -> Option<HashSet<String>> {
        let builds = self.store.builds().await.ok()?;
        let sandboxes = self.store.open_sandboxes().await.ok()?;
        let of_builds = builds.into_iter().flat_map(|build| build.layers);
        Some(of_builds.chain(sandboxes.into_iter().flat_map(|sandbox| sandbox.details.layers)).collect())
    }
}
