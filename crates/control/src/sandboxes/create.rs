//! From a request to a sandbox that answers.
//! The work runs in a task of its own: whoever asked may go away, the sandbox is then complete and listed or wholly gone.
//! The life of a sandbox is counted from the moment it answers, not from the request.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::RestoreMode;
use ids::{ExecutionId, SandboxId, TeamId};
use net::EgressPolicy;
use store::{
    Build, Idempotency, Lifecycle, NetworkConfig, Sandbox, SandboxDetails, SandboxState, Team,
    truncate_to_micros,
};
use telemetry::{CreatePath, OperationTimer, Outcome};
use time::{Duration, OffsetDateTime};
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, instrument};

use crate::limits::{Reservation, Ticket};
use crate::pool::Claimed;
use crate::resources::check_resources;
use crate::sandboxes::egress::egress_policy;
use crate::sandboxes::idempotency::{Begun, Claim};
use crate::sandboxes::launch::{Boot, Origin, discard};
use crate::sandboxes::running::{Live, SandboxInfo, Timing};
use crate::templates::Resolved;
use crate::{Control, ControlError, IdempotencyKey, LogLevel, TemplateRef};

/// A sandbox woken by traffic lives at least this long, seconds.
const MIN_AFTER_WAKING: i64 = 300;

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
    timer: OperationTimer<CreatePath>,
}

impl Control {
    /// Starts a sandbox.
    ///
    /// # Errors
    /// See [`ControlError`]; in every case nothing of the attempt is left.
    #[instrument(name = "create_sandbox", skip_all, fields(team_id = %team.id, template_id = Empty, build_id = Empty, sandbox_id = Empty))]
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
        let mut timer = telemetry::create_timer();
        let reference = TemplateRef::parse(&request.template)
            .map_err(|error| ControlError::Invalid(format!("Invalid template reference: {error}")))?;
        let resolved = self.resolve(team, &reference).await?;
        check_timeout(team, request.timeout)?;
        check_resources(team, &resolved.build)?;
        self.check_lifecycle(request.lifecycle)?;
        let mut request = request;
        request.lifecycle.resume_timeout = request.timeout.max(MIN_AFTER_WAKING).min(longest_seconds(team));
        let policy = egress_policy(request.network.as_ref(), request.allow_internet_access)?;
        self.node.admit()?;
        let reservation = self.places.reserve(team.id, team.limits.concurrent_sandboxes)?;
        let ticket = self.starts.join()?;

        timer.set_outcome(Outcome::Error);
        let start =
            Start { team: Arc::clone(team), resolved, request, policy, reservation, ticket, claim, timer };
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move { control.start(start).await }.in_current_span());
        let started = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a start task ended abnormally");
            Err(ControlError::StartFailed("internal error".to_owned()))
        });
        self.node.count(&started);
        started
    }

    /// The result of an earlier call under the same idempotency key, whatever has become of the sandbox.
    async fn created_before(&self, id: &SandboxId) -> Result<Access, ControlError> {
        if let Some(entry) = self.table.entry(id) {
            return Ok(self.access_to(entry.info()));
        }
        let record = self.store.sandbox(id).await?;
        let record = record.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))?;
        Ok(self.access_to(record.into()))
    }

    async fn start(self: Arc<Self>, start: Start) -> Result<Access, ControlError> {
        let Start { team, resolved, request, policy, reservation, ticket, claim, mut timer } = start;
        let build = &resolved.build;
        let began = std::time::Instant::now();
        let boot = boot_of(&SandboxId::generate(), team.id, build, Some(&request.env_vars), policy);
        let Claimed { id, sandbox } = match self.claim(build, &boot).await {
            Some(claimed) => {
                timer.set_path(CreatePath::Pool);
                claimed
            }
            None => {
                timer.set_path(create_path(&boot.origin));
                self.start_anew(build, &boot, ticket).await?
            }
        };
        let span = Span::current();
        span.record("template_id", display(&build.template));
        span.record("build_id", display(build.id));
        span.record("sandbox_id", display(&id));

        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            id: id.clone(),
            team: team.id,
            template: boot.template.clone(),
            build: build.id,
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + Duration::seconds(request.timeout),
            ended_at: None,
            end_reason: None,
            pause: None,
            details: SandboxDetails {
                alias: resolved.alias,
                metadata: request.metadata,
                lifecycle: request.lifecycle,
                network: request.network,
                allow_internet_access: request.allow_internet_access,
                cpu_count: build.cpu_count,
                memory_mib: build.memory_mib,
                disk_mib: build.disk_mib,
                envd_version: envd_api::VERSION.to_owned(),
                layers: build.layers.clone(),
                config: build.config.clone(),
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
        let live = Live::new(
            record,
            sandbox,
            Timing::until(now + Duration::seconds(request.timeout)),
            reservation,
            Arc::default(),
        );
        let access = self.access(&live);
        self.log(&live, LogLevel::Info, "sandbox started", &[("template", build.template.to_string())]);
        self.record_created(&live).await;
        self.go_live(live);
        self.note_start(team.id);
        self.usage.spawned(&build.template);
        tracing::info!(
            sandbox_id = %id, team_id = %team.id, template_id = %build.template, build_id = %build.id,
            took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "sandbox started"
        );
        timer.succeeded();
        Ok(access)
    }

    /// Starts what nobody has made ahead.
    async fn start_anew(&self, build: &Build, boot: &Boot, ticket: Ticket) -> Result<Claimed, ControlError> {
        let turn = tokio::select! {
            turn = ticket.turn() => turn?,
            () = self.closing.cancelled() => return Err(ControlError::ShuttingDown),
        };
        self.prepare(build).await?;
        let sandbox = self.boot(boot).await;
        drop(turn);
        let sandbox = sandbox.inspect_err(|error| {
            tracing::warn!(sandbox_id = %boot.id, team_id = %boot.team, template_id = %build.template, %error, "start failed");
        })?;
        if let Err(error) = self.bring_up(build, &boot.id, &*sandbox).await {
            discard(&*sandbox).await;
            return Err(error);
        }
        Ok(Claimed { id: boot.id.clone(), sandbox })
    }

    fn check_lifecycle(&self, lifecycle: Lifecycle) -> Result<(), ControlError> {
        let refuse = |text: &str| Err(ControlError::Invalid(text.to_owned()));
        match lifecycle {
            Lifecycle { auto_pause: false, auto_pause_memory: false, .. } => {
                refuse("autoPauseMemory can only be turned off together with autoPause")
            }
            Lifecycle { auto_pause_memory: false, auto_resume: true, .. } => {
                refuse("autoResume needs the memory: it cannot be combined with autoPauseMemory turned off")
            }
            Lifecycle { auto_pause: true, auto_pause_memory: true, .. } => self.check_memory_snapshots(),
            _ => Ok(()),
        }
    }

    /// Refuses what needs memory snapshots where there are none.
    pub(crate) fn check_memory_snapshots(&self) -> Result<(), ControlError> {
        let engine = self.engine.descriptor();
        // One of several may still be unable; it says so itself when it is asked.
        if self.engines().iter().any(|engine| engine.capabilities.memory_snapshots) {
            return Ok(());
        }
        Err(ControlError::Unsupported(format!(
            "this server cannot capture the memory of sandboxes (engine '{}'; `cofferdam doctor` says what is \
             missing); without memory (memory: false, autoPauseMemory: false) it can",
            engine.name
        )))
    }

    pub(crate) fn access(&self, live: &Live) -> Access {
        self.access_to(live.info())
    }

    pub(crate) fn access_to(&self, info: SandboxInfo) -> Access {
        let public = info.details.network.as_ref().and_then(|network| network.allow_public_traffic);
        Access {
            envd_token: self.tokens.envd(&info.id),
            traffic_token: (public == Some(false)).then(|| self.tokens.traffic(&info.id)),
            info,
        }
    }
}

/// How a create without a pre-started sandbox starts.
fn create_path(origin: &Origin) -> CreatePath {
    match origin {
        Origin::Captured { restore_mode: RestoreMode::Memory, .. } => CreatePath::WarmStart,
        _ => CreatePath::ColdStart,
    }
}

/// The first start of a sandbox: from a build, which may be a captured sandbox. Without an owner it has no variables of its own.
pub(crate) fn boot_of(
    id: &SandboxId,
    team: TeamId,
    build: &Build,
    env_vars: Option<&BTreeMap<String, String>>,
    egress: EgressPolicy,
) -> Boot {
    let origin = build.snapshot.as_ref().map_or(Origin::Template, |snapshot| Origin::Captured {
        snapshot: snapshot.id,
        restore_mode: if snapshot.memory { RestoreMode::Memory } else { RestoreMode::Disk },
        of: snapshot.sandbox.clone(),
    });
    let goes_on = matches!(origin, Origin::Captured { restore_mode: RestoreMode::Memory, .. });
    let own = env_vars.filter(|vars| !vars.is_empty());
    let env = || {
        let mut env = build.config.env.clone();
        env.extend(own.cloned().unwrap_or_default());
        env
    };
    Boot {
        id: id.clone(),
        team,
        template: build.snapshot.as_ref().map_or(&build.template, |snapshot| &snapshot.base).clone(),
        layers: build.layers.clone(),
        config: build.config.clone(),
        cpu_count: build.cpu_count,
        memory_mib: build.memory_mib,
        disk_mib: build.disk_mib,
        // Clients send an empty map when they mean nothing by it.
        env: (!goes_on || own.is_some()).then(env),
        egress,
        origin,
        trusts: true,
    }
}

/// Refuses lives that are no lives or longer than the team may have.
pub(crate) fn check_timeout(team: &Team, seconds: i64) -> Result<(), ControlError> {
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
