//! Template builds: a build is requested (`request`) and started (`start`). A task (`worker`) prepares its base (`base`), performs its
//! steps (`step`; `stages` for those before the last) and finishes the template (`finalize`). Clients poll the build (`status`). A step runs in a step sandbox
//! (`step_sandbox`); the files that it changed become a layer. Results of earlier builds are in the cache (`cache`).
//! The trait [`BuildContext`] has everything that builds need of the rest of the server.
//! If the server dies, the next one records its builds as failed and sweeps their sandboxes.
#![forbid(unsafe_code)]

mod archive;
mod base;
mod cache;
mod cleanup;
mod context;
mod directories;
mod error;
mod finalize;
mod image;
mod jobs;
mod links;
mod log;
mod planned;
mod request;
mod spec;
mod stages;
mod start;
mod status;
mod step;
mod step_sandbox;
mod task;
mod uploads;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use catalog::Catalog;
use layers::LayerStore;
use limits::{LimitError, QuotaReservation, TeamQuota};
use store::{Store, Team};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use archive::TemplateArchive;
pub use context::{
    BuildContext, BuildOrigin, BuildSandbox, BuildSandboxSpec, Command, Exit, Output, Purpose, Size,
};
pub use error::{BuildError, StepFailure};
pub use links::{FilesLink, UploadAddress};
pub use planned::DockerfilePlan;
pub use request::{BuildTarget, NewBuild, PendingBuild};
pub use spec::{ArchiveFile, BuildRules, BuildSource, BuildSpec, RegistryAuth, StageSpec};
pub use status::BuildReport;
pub use uploads::{UploadError, UploadRange, UploadState};

use directories::Directories;
use jobs::Jobs;
use uploads::Uploads;

/// Settings of builds.
#[derive(Debug, Clone)]
pub struct BuildsConfig {
    /// Directory of cache, uploads and logs; without it no templates are built.
    pub dir: Option<PathBuf>,
    /// Layers that builds start from and add to; without it no templates are built.
    pub layers: Option<LayerStore>,
    /// Whether those layers belong to this server alone, so that it may remove unused ones.
    pub owns_layers: bool,
    /// How registries of container images are reached.
    pub registries: oci::Registries,
    /// Certificate authorities that steps trust in addition to the template's own, PEM.
    pub trusted_ca: Option<String>,
    /// Version of envd's protocol that builds are recorded with.
    pub envd_version: &'static str,
    /// How long logs of builds are kept.
    pub retention: Duration,
}

/// Builds of all teams.
pub struct Builds {
    context: Arc<dyn BuildContext>,
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    config: BuildsConfig,
    jobs: Jobs,
    uploads: Uploads,
    quota: Arc<TeamQuota>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Builds {
    /// Builds that work through `context`. Tasks are spawned on `tasks`; builds stop when `closing` is cancelled.
    #[must_use]
    pub fn new(
        context: Arc<dyn BuildContext>,
        store: Arc<dyn Store>,
        catalog: Arc<Catalog>,
        config: BuildsConfig,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            store,
            catalog,
            config,
            jobs: Jobs::default(),
            uploads: Uploads::default(),
            quota: Arc::default(),
            tasks,
            closing,
        })
    }

    /// Counts one more build of a team until the reservation is dropped.
    ///
    /// # Errors
    /// [`BuildError::TooMany`] when the team has as many builds in progress as its limit allows.
    pub fn reserve(&self, team: &Team) -> Result<QuotaReservation, BuildError> {
        self.quota.reserve(team.id, team.limits.concurrent_builds).map_err(|error| match error {
            LimitError::Quota(limit) => BuildError::TooMany(limit),
            other => BuildError::Invalid(other.to_string()),
        })
    }

    /// Cancels a template's builds, because it was deleted.
    pub fn cancel_all_of(&self, template: &ids::TemplateId) {
        self.jobs.cancel_others(template, None);
    }

    /// Returns the directories and layers that builds work with.
    fn workspace(&self) -> Result<(Directories, LayerStore), BuildError> {
        match (&self.config.dir, &self.config.layers) {
            (Some(dir), Some(layers)) => Ok((Directories::new(dir.clone()), layers.clone())),
            _ => Err(BuildError::Unsupported("this server does not build templates".to_owned())),
        }
    }

    fn directories(&self) -> Result<Directories, BuildError> {
        Ok(self.workspace()?.0)
    }
}

impl std::fmt::Debug for Builds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builds").field("config", &self.config).finish_non_exhaustive()
    }
}
