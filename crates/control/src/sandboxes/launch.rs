//! From a specification to a sandbox whose agent knows who it is: the one way into the engine for creates, resumes and forks.
//! Nothing is left behind on failure, and a caller who stops waiting has it cleaned up too.
//! A restored agent still holds the token of the sandbox it was captured from: it is shown that one and given its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{
    EngineError, ExitReason, Resources, RestoreMode, Sandbox as EngineSandbox, StartSpec, TemplateImage,
};
use envd_api::InitRequest;
use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use net::EgressPolicy;
use store::BuildConfig;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

use crate::envd;
use crate::sandboxes::running::wait_for_exit;
use crate::{Control, ControlError};

/// Bytes of randomness an agent is given.
const SEED_LEN: usize = 32;

/// What a sandbox begins with.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// Its template.
    Template,
    /// A captured state.
    Captured {
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        /// The sandbox whose token the captured agent knows.
        of: SandboxId,
    },
}

/// A sandbox to be.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    pub(crate) id: SandboxId,
    pub(crate) team: TeamId,
    /// As told to its processes.
    pub(crate) template: TemplateId,
    /// Digests, uppermost first.
    pub(crate) layers: Vec<String>,
    pub(crate) config: BuildConfig,
    pub(crate) cpu_count: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: u32,
    /// Replaces the environment; none leaves a restored agent's as it is.
    pub(crate) env: Option<BTreeMap<String, String>>,
    pub(crate) egress: EgressPolicy,
    pub(crate) origin: Origin,
    /// Whether it is told of the operator's own authorities. What a build's steps leave behind must not trust them.
    pub(crate) trusts: bool,
}

impl Control {
    /// Starts it in the engine and introduces ourselves to its agent, within the configured time.
    pub(crate) async fn boot(&self, boot: &Boot) -> Result<Arc<dyn EngineSandbox>, ControlError> {
        let limit = self.config.start_timeout;
        let booted = tokio::time::timeout(limit, self.boot_untimed(boot)).await;
        booted.unwrap_or_else(|_| Err(ControlError::StartTimeout(format!("no answer within {limit:?}"))))
    }

    async fn boot_untimed(&self, boot: &Boot) -> Result<Arc<dyn EngineSandbox>, ControlError> {
        let spec = StartSpec {
            id: boot.id.clone(),
            template: self.image(&boot.layers, boot.config.engine.as_deref()),
            resources: Resources {
                cpu_count: boot.cpu_count,
                memory_mib: boot.memory_mib,
                disk_mib: boot.disk_mib,
                pids: self.config.pids,
            },
            hostname: self.config.hostname.clone(),
            egress: boot.egress.clone(),
            // The layers of a build's step are those of one more sandbox at most.
            recurring: boot.trusts,
        };
        let started = self.start_in_engine(boot.origin.clone(), spec).await.map_err(|error| {
            match (&boot.origin, error) {
                (Origin::Captured { .. }, EngineError::NotFound) => ControlError::SnapshotGone,
                (_, error) => start_error(error),
            }
        });
        let sandbox = DiscardOnDrop::new(started?, &self.tasks);
        self.introduce(boot, sandbox.get()).await?;
        Ok(sandbox.keep())
    }

    /// In a task of its own: a start that nobody waits for any more comes to its end all the same, and what it started is ended.
    async fn start_in_engine(
        &self,
        origin: Origin,
        spec: StartSpec,
    ) -> Result<Arc<dyn EngineSandbox>, EngineError> {
        let (answer, started) = oneshot::channel();
        let (engine, tasks) = (Arc::clone(&self.engine), self.tasks.clone());
        let span = match &origin {
            Origin::Template => info_span!("start", sandbox_id = %spec.id),
            Origin::Captured { snapshot, .. } => {
                info_span!("restore", sandbox_id = %spec.id, snapshot_id = %snapshot)
            }
        };
        let start = async move {
            let sandbox = match origin {
                Origin::Template => engine.start(spec).await,
                Origin::Captured { snapshot, restore_mode, .. } => {
                    engine.restore(snapshot, restore_mode, spec).await
                }
            };
            let _ = answer.send(sandbox.map(|sandbox| DiscardOnDrop::new(sandbox, &tasks)));
        };
        self.tasks.spawn(start.instrument(span));
        let started =
            started.await.unwrap_or_else(|_| Err(EngineError::Died("the start was interrupted".into())));
        started.map(DiscardOnDrop::keep)
    }

    /// Tells the agent its token, environment, clock, limits, and fresh randomness.
    pub(crate) async fn introduce(
        &self,
        boot: &Boot,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        let restored = match &boot.origin {
            Origin::Captured { restore_mode: RestoreMode::Memory, of, .. } => Some(of),
            _ => None,
        };
        self.tell(boot, sandbox, restored).await
    }

    /// Tells an agent that was introduced to us as nobody's whose it is.
    pub(crate) async fn reintroduce(
        &self,
        boot: &Boot,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        self.tell(boot, sandbox, None).await
    }

    /// `restored` is the sandbox whose token and randomness the agent has.
    async fn tell(
        &self,
        boot: &Boot,
        sandbox: &dyn EngineSandbox,
        restored: Option<&SandboxId>,
    ) -> Result<(), ControlError> {
        let mut seed = [0u8; SEED_LEN];
        getrandom::fill(&mut seed).expect("the kernel's random source answers on every supported system");
        let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("the present has a four-digit year");
        let init = InitRequest {
            access_token: Some(self.tokens.envd(&boot.id)),
            env_vars: boot.env.clone(),
            timestamp: Some(now),
            default_user: boot.config.default_user.clone(),
            default_workdir: boot.config.default_workdir.clone(),
            sandbox_id: Some(boot.id.as_str().to_owned()),
            template_id: Some(boot.template.as_str().to_owned()),
            team_id: Some(boot.team.to_string()),
            cpu_count: Some(boot.cpu_count.into()),
            memory_mib: Some(boot.memory_mib.into()),
            ca_bundle: self.config.trusted_ca.clone().filter(|_| boot.trusts),
            seed: restored.map(|_| hex::encode(seed)),
            ..InitRequest::default()
        };
        let authority = self.tokens.envd(restored.unwrap_or(&boot.id));
        let mut exit = sandbox.exit();
        tokio::select! {
            biased;
            answer = envd::init(sandbox, &authority, &init) => answer.map_err(|error| {
                // A sandbox that ended explains more than the connection it took along.
                let reason = exit.borrow().as_ref().map_or_else(|| error.to_string(), describe);
                ControlError::StartFailed(reason)
            }),
            reason = wait_for_exit(&mut exit) => Err(ControlError::StartFailed(describe(&reason))),
        }
    }

    /// What the engine starts from.
    pub(crate) fn image(&self, layers: &[String], engine: Option<&str>) -> TemplateImage {
        TemplateImage {
            layers: layers.iter().map(|digest| (self.config.layer_path)(digest)).collect(),
            engine: engine.map(str::to_owned),
        }
    }
}

/// A started sandbox that nobody has taken responsibility for yet.
pub(crate) struct DiscardOnDrop {
    sandbox: Option<Arc<dyn EngineSandbox>>,
    /// Waited for when the server goes down.
    tasks: TaskTracker,
}

impl DiscardOnDrop {
    pub(crate) fn new(sandbox: Arc<dyn EngineSandbox>, tasks: &TaskTracker) -> Self {
        Self { sandbox: Some(sandbox), tasks: tasks.clone() }
    }

    pub(crate) fn get(&self) -> &dyn EngineSandbox {
        &**self.sandbox.as_ref().expect("present until kept")
    }

    pub(crate) fn keep(mut self) -> Arc<dyn EngineSandbox> {
        self.sandbox.take().expect("present until kept")
    }
}

impl Drop for DiscardOnDrop {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.tasks.spawn(async move { discard(&*sandbox).await });
        }
    }
}

/// Ends a sandbox that nobody shall know of.
pub(crate) async fn discard(sandbox: &dyn EngineSandbox) {
    if let Err(error) = sandbox.kill().await {
        tracing::error!(sandbox_id = %sandbox.id(), %error, "a failed start could not be cleaned up");
    }
}

fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Exited(code) => format!("the sandbox ended while starting, with code {code}"),
        ExitReason::Signalled(signal) => format!("the sandbox ended while starting, by signal {signal}"),
        ExitReason::Unknown => "the sandbox ended while starting".to_owned(),
    }
}

/// What a caller is told when the engine cannot start something.
pub(crate) fn start_error(error: EngineError) -> ControlError {
    match error {
        EngineError::Exhausted(what) => ControlError::Capacity(what),
        EngineError::Timeout(what) => ControlError::StartTimeout(format!("{what} did not finish in time")),
        EngineError::Template(_) | EngineError::Host { .. } | EngineError::Unsupported(_) => {
            ControlError::StartRefused(error.to_string())
        }
        EngineError::NotFound
        | EngineError::Kernel { .. }
        | EngineError::Died(_)
        | EngineError::Capture(_)
        | EngineError::Restore(_)
        | EngineError::Capturing => ControlError::StartFailed(error.to_string()),
    }
}
