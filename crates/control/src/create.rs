//! From a request to a sandbox that answers.
//! The work runs in a task of its own: whoever asked may go away, the sandbox is then complete and listed or wholly gone.
//! The life of a sandbox is counted from the moment it answers, not from the request.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{EngineError, ExitReason, Resources, Sandbox as EngineSandbox, StartSpec};
use ids::{ExecutionId, SandboxId};
use net::EgressPolicy;
use store::{
    Build, Idempotency, Lifecycle, NetworkConfig, Sandbox, SandboxDetails, SandboxState, Team,
    truncate_to_micros,
};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::agent::{self, Init};
use crate::idempotency::{Begun, Claim};
use crate::limits::{Reservation, Ticket};
use crate::live::{Live, SandboxInfo, Timing, wait_for_exit};
use crate::network::egress_policy;
use crate::templates::Resolved;
use crate::{Control, ControlError, ENVD_VERSION, IdempotencyKey, LogLevel, TemplateRef};

/// What a caller may ask of a new sandbox. `timeout` is in seconds and has been given its default.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Name or id of the template.
    pub template: String,
    /// Life, seconds.
    pub timeout: i64,
    /// The user's own notes.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process; wins over the template's.
    pub env_vars: BTreeMap<String, String>,
    /// Network settings, if any were given.
    pub network: Option<NetworkConfig>,
    /// Whether the internet was explicitly allowed or refused.
    pub allow_internet_access: Option<bool>,
    /// What happens at the end.
    pub lifecycle: Lifecycle,
}

/// A sandbox its owner can talk to.
#[derive(Debug, Clone)]
pub struct Access {
    /// What is public about it.
    pub info: SandboxInfo,
    /// The token for envd.
    pub envd_token: String,
    /// The token for its ports, when they are not public.
    pub traffic_token: Option<String>,
}

/// Everything the start task owns.
struct Start {
    team: Arc<Team>,
    resolved: Resolved,
    request: CreateRequest,
    policy: EgressPolicy,
    reservation: Reservation,
    ticket: Ticket,
    claim: Option<Claim>,
}

impl Control {
    /// Starts a sandbox.
    ///
    /// # Errors
    /// See [`ControlError`]; in every case nothing of the attempt is left.
    pub async fn create(
        self: &Arc<Self>,
        team: &Arc<Team>,
        request: CreateRequest,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<Access, ControlError> {
        let claim = match idempotency {
            None => None,
            Some(key) => match self.in_flight.begin(&*self.store, team.id, key).await? {
                Begun::Fresh(claim) => Some(claim),
                Begun::Done(id) => return self.created_before(&id).await,
            },
        };
        let reference = TemplateRef::parse(&request.template)
            .map_err(|error| ControlError::Invalid(format!("Invalid template reference: {error}")))?;
        let resolved = self.resolve(team, &reference).await?;
        check_timeout(team, request.timeout)?;
        self.check_lifecycle(request.lifecycle)?;
        let policy = egress_policy(request.network.as_ref(), request.allow_internet_access)?;
        let reservation = self.places.reserve(team.id, team.limits.concurrent_sandboxes)?;
        let ticket = self.starts.join()?;

        let start = Start { team: Arc::clone(team), resolved, request, policy, reservation, ticket, claim };
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move { control.start(start).await });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a start task ended abnormally");
            Err(ControlError::StartFailed("internal error".to_owned()))
        })
    }

    /// The result of an earlier call under the same idempotency key, whatever has become of the sandbox.
    async fn created_before(&self, id: &SandboxId) -> Result<Access, ControlError> {
        if let Some(live) = self.table.get(id) {
            return Ok(self.access(&live));
        }
        let record = self.store.sandbox(id).await?;
        let record = record.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))?;
        Ok(self.access_to(record.into()))
    }

    async fn start(self: Arc<Self>, start: Start) -> Result<Access, ControlError> {
        let Start { team, resolved, request, policy, reservation, ticket, claim } = start;
        let turn = tokio::select! {
            turn = ticket.turn() => turn?,
            () = self.closing.cancelled() => return Err(ControlError::ShuttingDown),
        };
        let id = SandboxId::generate();
        let build = &resolved.build;
        let began = std::time::Instant::now();
        let booted =
            tokio::time::timeout(self.config.start_timeout, self.boot(&id, &team, build, &request, policy));
        let sandbox = booted.await.unwrap_or_else(|_| {
            Err(ControlError::StartTimeout(format!("no answer within {:?}", self.config.start_timeout)))
        });
        drop(turn);
        let sandbox = match sandbox {
            Ok(sandbox) => sandbox,
            Err(error) => {
                tracing::warn!(sandbox_id = %id, team_id = %team.id, template_id = %build.template, %error, "start failed");
                return Err(error);
            }
        };

        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            id: id.clone(),
            team: team.id,
            template: build.template.clone(),
            build: build.id,
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + Duration::seconds(request.timeout),
            ended_at: None,
            end_reason: None,
            details: SandboxDetails {
                alias: resolved.alias,
                metadata: request.metadata,
                lifecycle: request.lifecycle,
                network: request.network,
                allow_internet_access: request.allow_internet_access,
                cpu_count: build.cpu_count,
                memory_mib: build.memory_mib,
                disk_mib: build.disk_mib,
                envd_version: ENVD_VERSION.to_owned(),
            },
        };
        let idempotency = claim.as_ref().map(|claim| Idempotency {
            team: team.id,
            key: claim.key.key.clone(),
            body_hash: claim.key.body_hash,
            sandbox: id.clone(),
            created_at: now,
        });
        if let Err(error) = self.store.insert_sandbox(&record, idempotency.as_ref()).await {
            tracing::error!(sandbox_id = %id, %error, "a started sandbox could not be recorded and is ended");
            discard(&*sandbox).await;
            return Err(error.into());
        }
        let live =
            Live::new(record, sandbox, Timing::until(now + Duration::seconds(request.timeout)), reservation);
        let access = self.access(&live);
        self.log(&live, LogLevel::Info, "sandbox started", &[("template", build.template.to_string())]);
        self.go_live(live);
        self.usage.spawned(&build.template);
        tracing::info!(
            sandbox_id = %id, team_id = %team.id, template_id = %build.template, build_id = %build.id,
            took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "sandbox started"
        );
        Ok(access)
    }

    /// Starts it in the engine and introduces ourselves to its agent. Nothing is left behind on failure, and a caller
    /// who stops waiting has it cleaned up too.
    async fn boot(
        &self,
        id: &SandboxId,
        team: &Team,
        build: &Build,
        request: &CreateRequest,
        egress: EgressPolicy,
    ) -> Result<Arc<dyn EngineSandbox>, ControlError> {
        self.prepare(build).await?;
        let spec = StartSpec {
            id: id.clone(),
            template: self.image(build),
            resources: Resources {
                cpu_count: build.cpu_count,
                memory_mib: build.memory_mib,
                disk_mib: build.disk_mib,
                pids: self.config.pids,
            },
            hostname: self.config.hostname.clone(),
            egress,
        };
        let sandbox = DiscardOnDrop::new(self.engine.start(spec).await.map_err(start_error)?);
        let mut env_vars = build.config.env.clone();
        env_vars.extend(request.env_vars.clone());
        let init = Init {
            access_token: &self.tokens.envd(id),
            env_vars: &env_vars,
            timestamp: OffsetDateTime::now_utc().format(&Rfc3339).expect("the present has a four-digit year"),
            default_user: build.config.default_user.as_deref(),
            default_workdir: build.config.default_workdir.as_deref(),
            sandbox_id: id.as_str(),
            template_id: build.template.as_str(),
            team_id: team.id.to_string(),
            cpu_count: build.cpu_count,
            memory_mib: build.memory_mib,
        };
        let mut exit = sandbox.get().exit();
        tokio::select! {
            biased;
            answer = agent::init(sandbox.get(), &init) => {
                if let Err(error) = answer {
                    // A sandbox that ended explains more than the connection it took along.
                    let reason = exit.borrow().as_ref().map_or_else(|| error.to_string(), describe);
                    return Err(ControlError::StartFailed(reason));
                }
            }
            reason = wait_for_exit(&mut exit) => return Err(ControlError::StartFailed(describe(&reason))),
        }
        Ok(sandbox.keep())
    }

    pub(crate) fn check_lifecycle(&self, lifecycle: Lifecycle) -> Result<(), ControlError> {
        if lifecycle.auto_pause {
            return Err(ControlError::Invalid(format!(
                "autoPause is not available: this server cannot pause sandboxes yet (engine '{}')",
                self.engine.descriptor().name
            )));
        }
        if lifecycle.auto_resume {
            return Err(ControlError::Invalid("autoResume needs autoPause".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn access(&self, live: &Live) -> Access {
        self.access_to(live.info())
    }

    fn access_to(&self, info: SandboxInfo) -> Access {
        let public = info.details.network.as_ref().and_then(|network| network.allow_public_traffic);
        Access {
            envd_token: self.tokens.envd(&info.id),
            traffic_token: (public == Some(false)).then(|| self.tokens.traffic(&info.id)),
            info,
        }
    }
}

/// Refuses lives that are no lives or longer than the team may have.
fn check_timeout(team: &Team, seconds: i64) -> Result<(), ControlError> {
    if seconds <= 0 {
        return Err(ControlError::Invalid("Timeout must be greater than 0".to_owned()));
    }
    check_longest(team, seconds)
}

pub(crate) fn check_longest(team: &Team, seconds: i64) -> Result<(), ControlError> {
    let hours = team.limits.max_length_hours;
    if seconds > longest_seconds(team) {
        return Err(ControlError::Invalid(format!("Timeout cannot be greater than {hours} hours")));
    }
    Ok(())
}

/// The longest life, seconds. Without a limit of the team it is a century, which keeps times printable.
pub(crate) fn longest_seconds(team: &Team) -> i64 {
    match team.limits.max_length_hours {
        0 => 100 * 365 * 24 * 3600,
        hours => i64::from(hours) * 3600,
    }
}

/// A started sandbox that nobody has taken responsibility for yet.
struct DiscardOnDrop(Option<Arc<dyn EngineSandbox>>);

impl DiscardOnDrop {
    fn new(sandbox: Arc<dyn EngineSandbox>) -> Self {
        Self(Some(sandbox))
    }

    fn get(&self) -> &dyn EngineSandbox {
        &**self.0.as_ref().expect("present until kept")
    }

    fn keep(mut self) -> Arc<dyn EngineSandbox> {
        self.0.take().expect("present until kept")
    }
}

impl Drop for DiscardOnDrop {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0.take() {
            tokio::spawn(async move { discard(&*sandbox).await });
        }
    }
}

async fn discard(sandbox: &dyn EngineSandbox) {
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
        EngineError::NotFound | EngineError::Kernel { .. } | EngineError::Died(_) => {
            ControlError::StartFailed(error.to_string())
        }
    }
}
