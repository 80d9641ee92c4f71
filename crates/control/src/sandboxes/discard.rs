//! [`SnapshotCleaner`]: removes snapshots that nothing refers to any more.

use std::sync::Arc;

use catalog::Catalog;
use engine::Engine;
use ids::{SnapshotId, TemplateId};
use store::Build;

use super::Registry;

/// Removes snapshots from the engine.
pub(crate) struct SnapshotCleaner {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) registry: Arc<Registry>,
}

impl SnapshotCleaner {
    /// Removes a snapshot. If that fails, the next start of the server sweeps it.
    pub(crate) async fn discard(&self, snapshot: SnapshotId) {
        if let Err(error) = self.engine.discard(snapshot).await {
            tracing::error!(snapshot_id = %snapshot, %error, "failed to remove a snapshot");
        }
    }

    /// Removes the snapshots of deleted builds, except those that a sandbox is paused at.
    pub(crate) async fn discard_of(&self, builds: &[Arc<Build>]) {
        for snapshot in builds.iter().filter_map(|build| build.snapshot.as_ref()) {
            if !self.registry.is_paused_at(snapshot.id) {
                self.discard(snapshot.id).await;
            }
        }
    }

    /// Removes a template's warm starts that no tag refers to any more. Their builds stay and would start cold.
    pub(crate) async fn drop_stale_warm_starts(&self, template: &TemplateId) {
        for build in self.catalog.stale_warm_starts(template) {
            let cold = Build { snapshot: None, ..(*build).clone() };
            match self.catalog.put_build(&cold).await {
                Ok(_) => self.discard_of(&[build]).await,
                Err(error) => {
                    tracing::warn!(template_id = %template, build_id = %build.id, %error, "failed to drop a stale warm start");
                }
            }
        }
    }
}
