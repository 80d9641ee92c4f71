//! [`BuildTask`]: data that all parts of a running build share: team, build record, log, cache and layers.

use std::sync::Arc;

use layers::LayerStore;
use limits::QuotaReservation;
use logs::LogLevel;
use store::{Build, BuildConfig, Team};

use super::Builds;
use super::cache::{Cache, Progress};
use super::context::{BuildOrigin, BuildSandboxSpec, Purpose, Size};
use super::directories::Directories;
use super::jobs::Job;
use super::spec::BuildSpec;

/// A build in progress.
pub(crate) struct BuildTask {
    pub(crate) builds: Arc<Builds>,
    pub(crate) team: Arc<Team>,
    pub(crate) record: Build,
    pub(crate) spec: BuildSpec,
    pub(crate) job: Arc<Job>,
    pub(crate) dirs: Directories,
    pub(crate) layers: LayerStore,
    /// Counts as one of the team's builds in progress.
    pub(crate) _reservation: QuotaReservation,
}

impl BuildTask {
    /// Adds a line to the build's log.
    pub(crate) fn log(&self, level: LogLevel, step: &str, message: impl AsRef<str>) {
        self.job.log.add(level, Some(step), message);
    }

    /// Returns the spec of a step sandbox on these layers; its changes become a layer.
    pub(crate) fn sandbox_spec(&self, layers: &[String]) -> BuildSandboxSpec {
        let Build { cpu_count, memory_mib, disk_mib, .. } = self.record;
        BuildSandboxSpec {
            team: self.team.id,
            template: self.record.template.clone(),
            size: Size { cpu_count, memory_mib, disk_mib },
            layers: layers.to_vec(),
            origin: BuildOrigin::Layers,
            config: BuildConfig { engine: self.spec.engine.clone(), ..BuildConfig::default() },
            purpose: Purpose::Layer,
        }
    }

    fn cache(&self) -> Cache {
        Cache::of(&self.dirs.cache(), self.team.id)
    }

    /// Returns the cached result of a step.
    pub(crate) fn cached(&self, key: &str) -> Option<Progress> {
        self.cache().get(key, &self.layers)
    }

    /// Caches the result of a step. A result that cannot be cached only costs time in a later build.
    pub(crate) fn cache_result(&self, key: &str, progress: &Progress) {
        if let Err(error) = self.cache().put(key, progress) {
            tracing::warn!(build_id = %self.record.id, %error, "failed to cache the result of a build step");
        }
    }
}
