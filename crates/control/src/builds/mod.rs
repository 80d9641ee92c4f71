//! Template builds: asked for (`register`), started and followed (`start`, `status`), carried out (`worker`) step by step, each
//! step in a sandbox of its own (`machine`). What a step changed becomes a layer; a step done before is a layer found (`cache`).
//! A build is a task of this server: if the server dies, the next one records it as failed and its sandboxes are swept.

mod archive;
mod base;
mod cache;
mod failure;
mod files;
mod finalize;
mod image;
mod jobs;
mod log;
mod machine;
mod perform;
mod plans;
mod register;
mod start;
mod status;
mod tags;
mod uploads;
mod worker;

pub use archive::TemplateArchive;
pub use files::{FilesLink, UploadAddress};
pub use plans::DockerfilePlan;
pub use register::{BuildTarget, NewBuild, Requested};
pub use start::{ArchiveFile, BuildRules, BuildSource, BuildSpec, RegistryAuth};
pub use status::BuildReport;
pub use tags::{TagInfo, TagPage};
pub use uploads::{UploadError, UploadRange, UploadState};

pub(crate) use jobs::Jobs;
pub(crate) use uploads::Uploads;

use engine::Sandbox as EngineSandbox;
use ids::SandboxId;
use store::Build;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Control, ControlError};

/// Where builds keep their things below the configured directory.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    root: PathBuf,
}

impl Directories {
    fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    /// Dockerfiles of builds that are not started yet.
    fn plans(&self) -> PathBuf {
        self.root.join("plans")
    }

    fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
}

/// A layer this young may belong to a build that is under way.
const YOUNG: Duration = Duration::from_secs(2 * 24 * 3600);
/// How long an unused step is remembered.
const UNUSED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

impl Control {
    /// Drops logs, uploads and remembered steps that nobody has needed for long.
    pub(crate) async fn forget_builds(&self) {
        let Ok(dirs) = self.build_dirs() else { return };
        let retention = self.config.retention;
        let layers = self.config.layers.clone().filter(|_| self.config.owns_layers);
        let used = match layers {
            // Read before the rest is looked at: what is not known here came later, and is young.
            Some(_) => self.layers_in_use().await,
            None => None,
        };
        let forget = move || {
            log::book(&dirs).forget(retention);
            files::forget(&dirs);
            cache::forget(&dirs.cache(), UNUSED_FOR);
            cache::forget(&dirs.plans(), YOUNG);
            let (Some(store), Some(mut used)) = (layers, used) else { return };
            used.extend(cache::layers(&dirs.cache()));
            match store.remove_unused(&used, YOUNG) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "layers that nothing uses any more were removed"),
                Err(error) => tracing::warn!(%error, "unused layers could not be removed"),
            }
        };
        let _ = tokio::task::spawn_blocking(forget).await;
    }

    /// Layers of every build and of every sandbox that has not ended.
    async fn layers_in_use(&self) -> Option<HashSet<String>> {
        let builds = self.store.builds().await.ok()?;
        let sandboxes = self.store.open_sandboxes().await.ok()?;
        let of_builds = builds.into_iter().flat_map(|build| build.layers);
        Some(of_builds.chain(sandboxes.into_iter().flat_map(|sandbox| sandbox.details.layers)).collect())
    }

    /// Starts what a template starts, in a sandbox that was started without its memory image.
    pub(crate) async fn bring_up(
        &self,
        build: &Build,
        id: &SandboxId,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        if build.snapshot.is_some() || build.config.start_cmd.is_none() {
            return Ok(());
        }
        let token = self.tokens.envd(id);
        let hands = machine::Hands { sandbox, token: &token };
        let tell = |_, text: String| tracing::debug!(sandbox_id = %id, text, "bringing up");
        let up = finalize::bring_up(hands, &build.config, &tell).await;
        up.map_err(|failure::Failure(reason)| ControlError::StartFailed(reason))
    }

    fn build_dirs(&self) -> Result<Directories, ControlError> {
        let root = self.config.builds_dir.clone().filter(|_| self.config.layers.is_some());
        root.map(|root| Directories { root })
            .ok_or_else(|| ControlError::Unsupported("this server does not build templates".to_owned()))
    }
}
