//! [`Launcher`]: starts sandboxes in the engine and initialises their envd. All starts go through it: creates, resumes, forks,
//! rollbacks, the pool and builds. A failed or cancelled start leaves nothing behind.

use std::collections::HashSet;
use std::sync::Arc;

use engine::{
    Descriptor, Engine, EngineError, ExitReason, Resources, Sandbox as EngineSandbox, StartSpec,
    TemplateImage,
};
use envd_api::InitRequest;
use http::StatusCode;
use ids::{BuildId, SandboxId};
use limits::StartQueue;
use parking_lot::Mutex;
use store::Build;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

use super::running::wait_for_exit;
use super::{LaunchSource, LaunchSpec};
use crate::envd::{self, EnvdError};
use crate::tokens::Tokens;
use crate::{Config, ControlError, Volumes};

/// Length of the randomness that a restored envd is given, bytes.
const SEED_LEN: usize = 32;

/// Starts sandboxes.
pub(crate) struct Launcher {
    engine: Arc<dyn Engine>,
    config: Arc<Config>,
    pub(crate) tokens: Arc<Tokens>,
    volumes: Arc<Volumes>,
    /// Limits how many sandboxes start at once.
    pub(crate) queue: StartQueue,
    /// Builds that the engine has prepared.
    prepared: Mutex<HashSet<BuildId>>,
    pub(crate) tasks: TaskTracker,
}

impl Launcher {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        config: Arc<Config>,
        tokens: Arc<Tokens>,
        volumes: Arc<Volumes>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let queue = StartQueue::new(config.parallel_starts, config.start_queue);
        Arc::new(Self { engine, config, tokens, volumes, queue, prepared: Mutex::default(), tasks })
    }

    /// Returns the engines of this server, the default one first.
    pub(crate) fn engines(&self) -> Vec<&Descriptor> {
        self.engine.descriptors()
    }

    /// Starts a sandbox in the engine and initialises its envd, within the configured time.
    ///
    /// # Errors
    /// [`ControlError::SnapshotGone`], [`ControlError::StartTimeout`], and the errors of [`start_error`].
    pub(crate) async fn launch(&self, spec: &LaunchSpec) -> Result<Arc<dyn EngineSandbox>, ControlError> {
        let limit = self.config.start_timeout;
        let launched = tokio::time::timeout(limit, self.launch_untimed(spec)).await;
        launched.unwrap_or_else(|_| Err(ControlError::StartTimeout(format!("no answer within {limit:?}"))))
    }

    async fn launch_untimed(&self, spec: &LaunchSpec) -> Result<Arc<dyn EngineSandbox>, ControlError> {
        let start = StartSpec {
            id: spec.id.clone(),
            template: self.image(&spec.layers, spec.config.engine.as_deref()),
            resources: Resources {
                cpu_count: spec.cpu_count,
                memory_mib: spec.memory_mib,
                disk_mib: spec.disk_mib,
                pids: self.config.pids,
            },
            hostname: self.config.hostname.clone(),
            egress: spec.egress.clone(),
            volumes: self.volumes.open_mounts(&spec.volumes).await?,
            recurring: spec.shares_layers,
        };
        let started = self.start_in_engine(spec.source.clone(), start).await.map_err(|error| {
            match (&spec.source, error) {
                (LaunchSource::Snapshot { .. }, EngineError::NotFound) => ControlError::SnapshotGone,
                (_, error) => start_error(error),
            }
        });
        let sandbox = KillOnDrop::new(started?, &self.tasks);
        self.init_envd(spec, sandbox.get()).await?;
        Ok(sandbox.keep())
    }

    /// Starts or restores a sandbox in a task of its own: when the caller stops waiting, the start is still finished and the
    /// sandbox then killed.
    async fn start_in_engine(
        &self,
        source: LaunchSource,
        spec: StartSpec,
    ) -> Result<Arc<dyn EngineSandbox>, EngineError> {
        let (sender, started) = oneshot::channel();
        let (engine, tasks) = (Arc::clone(&self.engine), self.tasks.clone());
        let span = match &source {
            LaunchSource::Template => info_span!("start", sandbox_id = %spec.id),
            LaunchSource::Snapshot { snapshot, .. } => {
                info_span!("restore", sandbox_id = %spec.id, snapshot_id = %snapshot)
            }
        };
        let start = async move {
            let sandbox = match source {
                LaunchSource::Template => engine.start(spec).await,
                LaunchSource::Snapshot { snapshot, restore_mode, .. } => {
                    engine.restore(snapshot, restore_mode, spec).await
                }
            };
            let _ = sender.send(sandbox.map(|sandbox| KillOnDrop::new(sandbox, &tasks)));
        };
        self.tasks.spawn(start.instrument(span));
        let started =
            started.await.unwrap_or_else(|_| Err(EngineError::Died("the start was interrupted".into())));
        started.map(KillOnDrop::keep)
    }

    /// Initialises the envd of a started or restored sandbox: token, environment, clock, limits; a restored one also gets new
    /// randomness.
    pub(crate) async fn init_envd(
        &self,
        spec: &LaunchSpec,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        self.post_init(spec, sandbox, spec.source.restored_from()).await
    }

    /// Assigns an owner to a pre-started sandbox's envd, which has its own token and randomness already.
    pub(crate) async fn assign_owner(
        &self,
        spec: &LaunchSpec,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        self.post_init(spec, sandbox, None).await
    }

    /// Mounts the volumes of a pre-started sandbox's new owner.
    pub(crate) async fn mount_volumes(
        &self,
        spec: &LaunchSpec,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        if spec.volumes.is_empty() {
            return Ok(());
        }
        let volumes = self.volumes.open_mounts(&spec.volumes).await?;
        sandbox.mount(volumes).await.map_err(start_error)
    }

    /// Calls envd's `POST /init`. `restored_from` is the sandbox whose token and randomness envd has.
    async fn post_init(
        &self,
        spec: &LaunchSpec,
        sandbox: &dyn EngineSandbox,
        restored_from: Option<&SandboxId>,
    ) -> Result<(), ControlError> {
        let mut seed = [0u8; SEED_LEN];
        getrandom::fill(&mut seed).expect("the kernel's random source answers on every supported system");
        let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("the present has a four-digit year");
        let init = InitRequest {
            access_token: Some(self.tokens.inner(&spec.id)),
            env_vars: spec.env.clone(),
            timestamp: Some(now),
            default_user: spec.config.default_user.clone(),
            default_workdir: spec.config.default_workdir.clone(),
            sandbox_id: Some(spec.id.as_str().to_owned()),
            template_id: Some(spec.template.as_str().to_owned()),
            team_id: Some(spec.team.to_string()),
            cpu_count: Some(spec.cpu_count.into()),
            memory_mib: Some(spec.memory_mib.into()),
            disk_mib: self.engine.descriptor().capabilities.disk_limit.then(|| spec.disk_mib.into()),
            ca_bundle: self.authorities().filter(|_| spec.trusts_operator_ca),
            seed: restored_from.map(|_| hex::encode(seed)),
            ..InitRequest::default()
        };
        let earlier_id = restored_from.unwrap_or(&spec.id);
        let mut exit = sandbox.exit();
        tokio::select! {
            biased;
            answer = self.call_init(sandbox, earlier_id, &init) => answer.map_err(|error| {
                // If the sandbox ended, its exit says more than the broken connection.
                let reason = exit.borrow().as_ref().map_or_else(|| error.to_string(), describe);
                ControlError::StartFailed(reason)
            }),
            reason = wait_for_exit(&mut exit) => Err(ControlError::StartFailed(describe(&reason))),
        }
    }

    /// Returns the certificate authorities that sandboxes trust besides their template's: the operator's and the server's own.
    fn authorities(&self) -> Option<String> {
        let both: Vec<&str> = [&self.config.trusted_ca, &self.config.egress_ca]
            .into_iter()
            .flatten()
            .map(|pem| pem.trim())
            .collect();
        (!both.is_empty()).then(|| both.join("\n"))
    }

    /// Calls `POST /init`, which needs no token, as envd trusts the server's connections. Only the envd of a sandbox that an
    /// earlier version of the server started demands the token that it was given then, under the id `earlier_id`.
    async fn call_init(
        &self,
        sandbox: &dyn EngineSandbox,
        earlier_id: &SandboxId,
        init: &InitRequest,
    ) -> Result<(), EnvdError> {
        let mut answer = envd::init(sandbox, "", init).await;
        for token in [self.tokens.inner(earlier_id), self.tokens.envd(earlier_id)] {
            if !matches!(answer, Err(EnvdError::Status(StatusCode::UNAUTHORIZED))) {
                break;
            }
            answer = envd::init(sandbox, &token, init).await;
        }
        answer
    }

    /// Gives an adopted sandbox's envd its inner token, which it lacks if an earlier version of the server started it.
    pub(crate) async fn renew_token(&self, sandbox: &dyn EngineSandbox) {
        let init = InitRequest {
            access_token: Some(self.tokens.inner(sandbox.id())),
            // The server's own may have been replaced meanwhile.
            ca_bundle: self.authorities(),
            ..InitRequest::default()
        };
        if let Err(error) = self.call_init(sandbox, sandbox.id(), &init).await {
            tracing::warn!(sandbox_id = %sandbox.id(), %error, "failed to renew the token of an adopted sandbox");
        }
    }

    /// Makes the engine prepare a finished build's layers, once per server process.
    pub(crate) async fn prepare(&self, build: &Build) -> Result<(), ControlError> {
        if self.prepared.lock().contains(&build.id) {
            return Ok(());
        }
        self.prepare_layers(&build.layers, build.config.engine.as_deref(), true).await?;
        self.prepared.lock().insert(build.id);
        Ok(())
    }

    /// Makes the engine prepare layers. If they are not `shared`, the engine may remove the result with the last sandbox that uses it.
    pub(crate) async fn prepare_layers(
        &self,
        layers: &[String],
        engine: Option<&str>,
        shared: bool,
    ) -> Result<(), ControlError> {
        self.engine.prepare(&self.image(layers, engine), shared).await.map_err(start_error)
    }

    fn image(&self, layers: &[String], engine: Option<&str>) -> TemplateImage {
        TemplateImage {
            layers: layers.iter().map(|digest| (self.config.layer_path)(digest)).collect(),
            engine: engine.map(str::to_owned),
        }
    }
}

/// A started sandbox that is not registered yet; it is killed unless it is kept.
pub(crate) struct KillOnDrop {
    sandbox: Option<Arc<dyn EngineSandbox>>,
    /// Where the kill runs; waited for when the server shuts down.
    tasks: TaskTracker,
}

impl KillOnDrop {
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

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.tasks.spawn(async move { kill_unregistered(&*sandbox).await });
        }
    }
}

/// Kills a sandbox that was never registered.
pub(crate) async fn kill_unregistered(sandbox: &dyn EngineSandbox) {
    if let Err(error) = sandbox.kill().await {
        tracing::error!(sandbox_id = %sandbox.id(), %error, "failed to clean up after a failed start");
    }
}

fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Exited(code) => format!("the sandbox ended while starting, with code {code}"),
        ExitReason::Signalled(signal) => format!("the sandbox ended while starting, by signal {signal}"),
        ExitReason::Unknown => "the sandbox ended while starting".to_owned(),
    }
}

/// Logs why the engine cannot start a sandbox, and returns what the caller sees.
pub(crate) fn start_error(error: EngineError) -> ControlError {
    tracing::warn!(%error, "the engine failed to start a sandbox");
    let for_clients = error.for_clients();
    match error {
        EngineError::Exhausted(what) => ControlError::Capacity(what),
        EngineError::Mount { .. } => ControlError::Invalid(for_clients),
        EngineError::Locked(_) => ControlError::Conflict(for_clients),
        EngineError::Kernel { .. } if error.is_disk_full() => ControlError::Capacity(for_clients),
        EngineError::Timeout(what) => ControlError::StartTimeout(format!("{what} did not finish in time")),
        EngineError::Template(_) | EngineError::Host { .. } | EngineError::Unsupported(_) => {
            ControlError::StartRefused(for_clients)
        }
        EngineError::NotFound
        | EngineError::Kernel { .. }
        | EngineError::Died(_)
        | EngineError::Capture(_)
        | EngineError::Uncapturable(_)
        | EngineError::Restore(_)
        | EngineError::Capturing => ControlError::StartFailed(for_clients),
    }
}
