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

/// What `prune` leaves: builds end within this time.
const PRUNED_AGE: Duration = Duration::from_secs(3600);

/// How long uploaded archives and results of steps must have been unused, and how old layers must be.
#[derive(Debug, Clone, Copy)]
struct Ages {
    archives: Duration,
    steps: Duration,
    layers: Duration,
}

impl Builds {
    /// Removes old logs, uploads and results of steps, and layers that nothing refers to.
    pub async fn remove_unused(&self) {
        self.remove(Ages { archives: ARCHIVE_RETENTION, steps: CACHE_RETENTION, layers: MIN_LAYER_AGE })
            .await;
    }

    /// Removes all uploads and results of steps, and layers that nothing refers to then, but for what is younger than an hour and may belong
    /// to a build in progress. Returns the number of layers.
    pub async fn prune(&self) -> usize {
        self.remove(Ages { archives: PRUNED_AGE, steps: PRUNED_AGE, layers: PRUNED_AGE }).await
    }

    async fn remove(&self, ages: Ages) -> usize {
        let Ok((dirs, store)) = self.workspace() else { return 0 };
        let retention = self.config.retention;
        // The references are read before the layers are listed: a layer that is referred to only afterwards is younger than
        // MIN_LAYER_AGE.
        let used = if self.config.owns_layers { self.layers_in_use().await } else { None };
        let remove = move || {
            dirs.logs().forget(retention);
            uploads::remove_expired_parts(&dirs.files(), std::time::SystemTime::now());
            cache::remove_unused(&dirs.files(), ages.archives);
            cache::remove_unused(&dirs.cache(), ages.steps);
            cache::remove_unused(&dirs.plans(), PLAN_RETENTION);
            let Some(mut used) = used else { return 0 };
            used.extend(cache::layers(&dirs.cache()));
            let removed = store.remove_unused(&used, ages.layers).unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to remove unused layers");
                0
            });
            if removed > 0 {
                tracing::info!(removed, "removed unused layers");
            }
            removed
        };
        tokio::task::spawn_blocking(remove).await.unwrap_or(0)
    }

    /// Returns the layers of every build and of every sandbox that has not ended; none when the store failed.
    async fn layers_in_use(&self) -> Option<HashSet<String>> {
        let builds = self.store.builds().await.ok()?;
        let sandboxes = self.store.open_sandboxes().await.ok()?;
        let of_builds = builds.into_iter().flat_map(|build| build.layers);
        Some(of_builds.chain(sandboxes.into_iter().flat_map(|sandbox| sandbox.details.layers)).collect())
    }
}
