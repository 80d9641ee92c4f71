//! The pool: pre-started sandboxes of templates in use, so that a create only has to assign an owner. Each is claimed once. A
//! pre-started sandbox has its final id, token and randomness, and no egress. The claim sets the egress policy of its owner and then
//! sends team, environment and clock to its envd. Before the claim no registry and no record contains the sandbox: after a crash the
//! engine sweeps it.

mod demand;
mod keeper;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use catalog::TemplateRef;
use engine::Sandbox as EngineSandbox;
use ids::{BuildId, SandboxId, TemplateId};
use parking_lot::{Mutex, MutexGuard};
use store::Build;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::demand::Demand;
use crate::sandboxes::{KillOnDrop, LaunchSpec};
use crate::{Control, ControlError};

/// Maximum number of pre-started sandboxes that the operator may set for a template.
const MAX_FIXED: usize = 1000;

/// A pre-started sandbox.
struct PreStarted {
    id: SandboxId,
    sandbox: KillOnDrop,
    /// Memory that it used right after its start, bytes.
    memory: u64,
}

impl PreStarted {
    fn is_alive(&self) -> bool {
        self.sandbox.get().exit().borrow().is_none()
    }
}

/// The pre-started sandboxes of one build.
#[derive(Default)]
struct BuildPool {
    ready: VecDeque<PreStarted>,
    demand: Demand,
    hits: u64,
    misses: u64,
    /// When a start may be tried again after a failure.
    retry_at: Option<Instant>,
}

/// All pre-started sandboxes.
#[derive(Default)]
pub(crate) struct Pool {
    builds: Mutex<HashMap<BuildId, BuildPool>>,
    /// Numbers that the operator has set for templates, whatever the demand.
    fixed: Mutex<HashMap<TemplateId, usize>>,
    /// Notified when a sandbox was claimed or a number was set.
    changed: Notify,
}

/// The pre-started sandboxes of one build, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolReport {
    /// The template.
    pub template: TemplateId,
    /// Names of the template.
    pub names: Vec<String>,
    /// The build.
    pub build: BuildId,
    /// Number of pre-started sandboxes.
    pub ready: usize,
    /// Number that there should be.
    pub wanted: usize,
    /// Number that the operator has set; none follows the demand.
    pub fixed: Option<usize>,
    /// Creates that claimed one.
    pub hits: u64,
    /// Creates that found none.
    pub misses: u64,
    /// Memory that they use together, bytes.
    pub memory: u64,
}

impl Pool {
    /// Opens an empty pool with the numbers that the operator has set.
    pub(crate) fn open(file: Option<&Path>) -> Self {
        let text = file.and_then(|path| std::fs::read(path).ok());
        let numbers: HashMap<String, usize> =
            text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let fixed = numbers.into_iter().filter_map(|(id, count)| Some((id.parse().ok()?, count)));
        Self { fixed: Mutex::new(fixed.collect()), ..Self::default() }
    }

    fn builds(&self) -> MutexGuard<'_, HashMap<BuildId, BuildPool>> {
        self.builds.lock()
    }

    /// Returns the templates that the operator has set a number for.
    fn fixed_templates(&self) -> Vec<TemplateId> {
        self.fixed.lock().keys().cloned().collect()
    }

    /// Returns the number that the operator has set for a template.
    fn fixed(&self, template: &TemplateId) -> Option<usize> {
        self.fixed.lock().get(template).copied()
    }

    /// Takes a pre-started sandbox that is alive, and counts the request.
    fn take(&self, build: BuildId) -> Option<PreStarted> {
        let mut dead = Vec::new();
        let mut builds = self.builds();
        let pool = builds.entry(build).or_default();
        pool.demand.note(Instant::now());
        let taken = loop {
            match pool.ready.pop_front() {
                Some(ready) if !ready.is_alive() => dead.push(ready),
                taken => break taken,
            }
        };
        telemetry::pool_claimed(taken.is_some());
        match taken {
            Some(_) => pool.hits += 1,
            None => pool.misses += 1,
        }
        drop(builds);
        self.changed.notify_one();
        taken
    }

    /// Takes all pre-started sandboxes.
    fn drain(&self) -> Vec<PreStarted> {
        self.builds().values_mut().flat_map(|pool| pool.ready.drain(..)).collect()
    }
}

/// A sandbox that was pre-started or newly started for a create.
pub(crate) struct ClaimedSandbox {
    pub(crate) id: SandboxId,
    pub(crate) sandbox: Arc<dyn EngineSandbox>,
}

impl Control {
    /// Claims a pre-started sandbox of this build, if there is one, and assigns the owner in `spec` to it. The sandbox keeps its own
    /// id; the id in `spec` is not used.
    pub(crate) async fn claim_pre_started(&self, build: &Build, spec: &LaunchSpec) -> Option<ClaimedSandbox> {
        if self.config.pool_max == 0 && self.pool.fixed(&build.template).is_none() {
            return None;
        }
        let PreStarted { id, sandbox, .. } = self.pool.take(build.id)?;
        let own = LaunchSpec { id: id.clone(), ..spec.clone() };
        sandbox.get().set_egress(own.egress.clone());
        let limit = self.config.start_timeout;
        let assigned = async {
            self.launcher.mount_volumes(&own, sandbox.get()).await?;
            self.launcher.assign_owner(&own, sandbox.get()).await
        };
        match tokio::time::timeout(limit, assigned).await {
            Ok(Ok(())) => Some(ClaimedSandbox { id, sandbox: sandbox.keep() }),
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = %id, %error, "failed to assign an owner to a pre-started sandbox");
                None
            }
            Err(_) => {
                tracing::warn!(sandbox_id = %id, "the envd of a pre-started sandbox did not respond in time");
                None
            }
        }
    }

    /// Returns the state of the pool by build, ordered by template name.
    #[must_use]
    pub fn pool(&self) -> Vec<PoolReport> {
        let now = Instant::now();
        let builds = self.pool.builds();
        let mut reports: Vec<PoolReport> = builds
            .iter()
            .filter_map(|(build, pool)| {
                let build = self.catalog.build(*build)?;
                let template = self.catalog.template(&build.template)?;
                let fixed = self.pool.fixed(&template.id);
                Some(PoolReport {
                    names: template.names.iter().map(ToString::to_string).collect(),
                    template: template.id,
                    build: build.id,
                    ready: pool.ready.len(),
                    wanted: fixed.unwrap_or_else(|| pool.demand.wanted(now)),
                    fixed,
                    hits: pool.hits,
                    misses: pool.misses,
                    memory: pool.ready.iter().map(|ready| ready.memory).sum(),
                })
            })
            .collect();
        reports.sort_by(|a, b| (&a.names, a.build).cmp(&(&b.names, b.build)));
        reports
    }

    /// Sets the number of pre-started sandboxes of a default template or a template of the default team, whatever the demand; `None`
    /// follows the demand again. The number is saved: after a restart, that many sandboxes are pre-started from the build with the tag
    /// `default`.
    ///
    /// # Errors
    /// There is no such ready template, or the number cannot be written to the disk.
    pub async fn set_pool(&self, text: &str, count: Option<usize>) -> Result<(), ControlError> {
        if count.is_some_and(|count| count > MAX_FIXED) {
            return Err(ControlError::Invalid(format!(
                "at most {MAX_FIXED} pre-started sandboxes per template"
            )));
        }
        let reference = TemplateRef::parse(text)?;
        let build = self.catalog.resolve(&self.default_team(), &reference).await?.build;
        let numbers = {
            let mut fixed = self.pool.fixed.lock();
            match count {
                Some(count) => fixed.insert(build.template.clone(), count),
                None => fixed.remove(&build.template),
            };
            fixed.iter().map(|(id, count)| (id.to_string(), *count)).collect::<HashMap<_, _>>()
        };
        self.pool.builds().entry(build.id).or_default();
        if let Some(path) = self.config.pool_file.clone() {
            let write = move || fs_atomic::write_json(&path, &numbers, fs_atomic::Options::default());
            let written = tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other);
            written.flatten().map_err(|error| {
                tracing::error!(%error, "failed to save the pool settings");
                ControlError::Engine("failed to save the pool settings; see the server's log")
            })?;
        }
        self.pool.changed.notify_one();
        Ok(())
    }
}
