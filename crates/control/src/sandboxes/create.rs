//! Creates sandboxes: checks the request, then claims a pre-started sandbox or starts a new one, in a task of its own. If the caller
//! disconnects, the sandbox is nevertheless either complete and listed, or completely removed.
//! A sandbox's time is counted from the moment its envd answers, not from the request.

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog::{ResolvedTemplate, TemplateRef};
use egress_rules::ProxyRequest;
use ids::{ExecutionId, SandboxId};
use limits::{QuotaReservation, StartTicket, check_sandbox_size};
use logs::LogLevel;
use net::EgressPolicy;
use store::{
    Build, Idempotency, Lifecycle, NetworkConfig, PauseFallback, Sandbox, SandboxDetails, SandboxState, Team,
    VolumeMount, truncate_to_micros,
};
use telemetry::{CreatePath, OperationTimer, Outcome};
use time::{Duration, OffsetDateTime};
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, instrument};

use super::idempotency::{CreateClaim, Idempotent};
use super::{
    Access, IdempotencyKey, LaunchSpec, RunningSandbox, TimeLimit, check_timeout, egress_policy,
    kill_unregistered, max_timeout,
};
use crate::pool::ClaimedSandbox;
use crate::{Control, ControlError, MountRequest};

/// Minimum time of a sandbox that was resumed by traffic, seconds.
const MIN_AFTER_WAKING: i64 = 300;

/// What a caller may set for a new sandbox.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Name or id of the template.
    pub template: String,
    /// Time until its end, seconds; the caller has filled in the default.
    pub timeout: i64,
    /// Metadata of the user.
    pub metadata: BTreeMap<String, String>,
    /// Environment variables of every process; they override the template's.
    pub env_vars: BTreeMap<String, String>,
    /// Network settings, if any were given.
    pub network: Option<NetworkConfig>,
    /// Audiences of the identity tokens that header rules may send, by name.
    pub identity_tokens: BTreeMap<String, String>,
    /// The proxy that outgoing connections go through, as its creator sends it.
    pub proxy: Option<ProxyRequest>,
    /// Whether internet access was explicitly allowed or denied.
    pub allow_internet_access: Option<bool>,
    /// What happens at the end of its time.
    pub lifecycle: Lifecycle,
    /// Volumes that it mounts.
    pub volume_mounts: Vec<MountRequest>,
}

/// A checked create, with everything that it has reserved.
struct AcceptedCreate {
    team: Arc<Team>,
    resolved: ResolvedTemplate,
    request: CreateRequest,
    policy: EgressPolicy,
    mounts: Vec<VolumeMount>,
    reservation: QuotaReservation,
    ticket: StartTicket,
    claim: Option<CreateClaim>,
    timer: OperationTimer<CreatePath>,
}

impl Control {
    /// Creates a sandbox.
    ///
    /// # Errors
    /// See [`ControlError`]; in every case nothing of the attempt is left.
    #[instrument(
        name = "create_sandbox", skip_all,
        fields(team_id = %team.id, template_id = Empty, build_id = Empty, sandbox_id = Empty)
    )]
    pub async fn create(
        self: &Arc<Self>,
        team: &Arc<Team>,
        request: CreateRequest,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<Access, ControlError> {
        let claim = match idempotency {
            None => None,
            Some(key) => match self.in_flight_creates.begin(&*self.store, team.id, key).await? {
                Idempotent::New(claim) => Some(claim),
                Idempotent::Done(id) => return self.created_before(&id).await,
            },
        };
        let mut accepted = self.accept(team, request, claim).await?;
        accepted.timer.set_outcome(Outcome::Error);
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move { control.claim_or_start(accepted).await }.in_current_span());
        let started = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a create's task ended abnormally");
            Err(ControlError::StartFailed("internal error".to_owned()))
        });
        self.node.count(&started);
        started
    }

    /// Checks a request and reserves what its sandbox needs.
    async fn accept(
        &self,
        team: &Arc<Team>,
        mut request: CreateRequest,
        claim: Option<CreateClaim>,
    ) -> Result<AcceptedCreate, ControlError> {
        let timer = telemetry::create_timer();
        let reference = TemplateRef::parse(&request.template)
            .map_err(|error| ControlError::Invalid(format!("Invalid template reference: {error}")))?;
        let resolved = self.catalog.resolve(team, &reference).await?;
        check_timeout(team, request.timeout)?;
        check_sandbox_size(team, &resolved.build)?;
        self.check_lifecycle(request.lifecycle)?;
        request.lifecycle.resume_timeout = request.timeout.max(MIN_AFTER_WAKING).min(max_timeout(team));
        let mut policy = egress_policy(team.id, request.network.as_ref(), request.allow_internet_access)?;
        if let Some(proxy) = self.accept_proxy(team.id, request.proxy.take().as_ref()).await? {
            request.network.get_or_insert_default().egress_proxy = Some(proxy);
            policy = egress_policy(team.id, request.network.as_ref(), request.allow_internet_access)?;
        }
        self.accept_tokens(&request.identity_tokens).await?;
        let mounts = self.volumes.check_mounts(team.id, std::mem::take(&mut request.volume_mounts))?;
        self.check_engine_mounts(&mounts, &resolved.build)?;
        self.node.admit()?;
        let reservation = self.quota.reserve(team.id, team.limits.concurrent_sandboxes)?;
        let ticket = self.launcher.queue.join()?;
        let team = Arc::clone(team);
        Ok(AcceptedCreate { team, resolved, request, policy, mounts, reservation, ticket, claim, timer })
    }

    /// Returns the result of an earlier create with the same idempotency key, also if the sandbox has ended since.
    async fn created_before(&self, id: &SandboxId) -> Result<Access, ControlError> {
        if let Some(sandbox) = self.registry.get(id) {
            return Ok(self.access_to(sandbox.info()));
        }
        let record = self.store.sandbox(id).await?;
        let record = record.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))?;
        Ok(self.access_to(record.into()))
    }

    /// Claims a pre-started sandbox or starts a new one, records it and lets it go live.
    async fn claim_or_start(self: Arc<Self>, accepted: AcceptedCreate) -> Result<Access, ControlError> {
        let AcceptedCreate { team, resolved, request, policy, mounts, reservation, ticket, claim, mut timer } =
            accepted;
        let build = &resolved.build;
        let began = std::time::Instant::now();
        let env_vars = Some(&request.env_vars);
        let spec = LaunchSpec {
            volumes: mounts,
            ..LaunchSpec::from_build(&SandboxId::generate(), team.id, build, env_vars, policy)
        };
        let ClaimedSandbox { id, sandbox } = match self.claim_pre_started(build, &spec).await {
            Some(claimed) => {
                timer.set_path(CreatePath::Pool);
                claimed
            }
            None => {
                timer.set_path(create_path(&spec));
                self.start_new(build, &spec, ticket).await?
            }
        };
        let span = Span::current();
        span.record("template_id", display(&build.template));
        span.record("build_id", display(build.id));
        span.record("sandbox_id", display(&id));

        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = first_record(&id, &team, &spec, &resolved, request, now);
        let idempotency = claim.as_ref().map(|claim| Idempotency {
            team: team.id,
            key: claim.key.key.clone(),
            body_hash: claim.key.body_hash,
            sandbox: id.clone(),
            created_at: now,
        });
        if let Err(error) = self.store.insert_sandbox(&record, idempotency.as_ref()).await {
            tracing::error!(sandbox_id = %id, %error, "failed to record a started sandbox; killing it");
            kill_unregistered(&*sandbox).await;
            return Err(error.into());
        }
        let time_limit = TimeLimit::until(record.end_at);
        let running = RunningSandbox::new(record, sandbox, time_limit, reservation, Arc::default());
        let access = self.access_to(running.info());
        let fields = [("template", build.template.to_string())];
        self.log(&running, LogLevel::Info, "sandbox started", &fields);
        self.events.record_created(&*running).await;
        self.go_live(running);
        self.count_start(team.id);
        self.usage.template_used(&build.template);
        tracing::info!(
            sandbox_id = %id, team_id = %team.id, template_id = %build.template, build_id = %build.id,
            took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "sandbox started"
        );
        timer.succeeded();
        Ok(access)
    }

    /// Starts a sandbox that was not pre-started: from the template's warm start, or cold.
    async fn start_new(
        &self,
        build: &Build,
        spec: &LaunchSpec,
        ticket: StartTicket,
    ) -> Result<ClaimedSandbox, ControlError> {
        let permit = tokio::select! {
            permit = ticket.turn() => permit?,
            () = self.closing.cancelled() => return Err(ControlError::ShuttingDown),
        };
        self.launcher.prepare(build).await?;
        let sandbox = self.launcher.launch(spec).await;
        drop(permit);
        let sandbox = sandbox.inspect_err(|error| {
            tracing::warn!(
                sandbox_id = %spec.id, team_id = %spec.team, template_id = %build.template, %error,
                "failed to start a sandbox"
            );
        })?;
        if let Err(error) = self.launcher.run_start_command(build, &spec.id, &*sandbox).await {
            kill_unregistered(&*sandbox).await;
            return Err(error);
        }
        Ok(ClaimedSandbox { id: spec.id.clone(), sandbox })
    }

    /// Rejects volumes where the template's engine has none.
    fn check_engine_mounts(&self, mounts: &[VolumeMount], build: &Build) -> Result<(), ControlError> {
        let engines = self.engines();
        let named = engines.iter().find(|engine| Some(engine.name) == build.config.engine.as_deref());
        let engine = named.copied().unwrap_or_else(|| self.engine());
        if mounts.is_empty() || engine.capabilities.volumes {
            return Ok(());
        }
        Err(ControlError::Invalid(format!(
            "volumes cannot be mounted in sandboxes of the engine {}",
            engine.name
        )))
    }

    /// Rejects combinations of lifecycle settings that cannot be kept.
    fn check_lifecycle(&self, lifecycle: Lifecycle) -> Result<(), ControlError> {
        let refuse = |text: &str| Err(ControlError::Invalid(text.to_owned()));
        match lifecycle {
            Lifecycle { auto_pause: false, auto_pause_memory: false, .. } => {
                refuse("autoPauseMemory can only be turned off together with autoPause")
            }
            Lifecycle { auto_pause: false, auto_pause_fallback: PauseFallback::Kill, .. } => {
                refuse("autoPauseFallback needs autoPause")
            }
            Lifecycle { auto_pause_memory: false, auto_resume: true, .. } => {
                refuse("autoResume needs the memory: it cannot be combined with autoPauseMemory turned off")
            }
            Lifecycle { auto_pause: true, auto_pause_memory: true, .. } => self.check_memory_snapshots(),
            _ => Ok(()),
        }
    }
}

/// Returns how a create without a pre-started sandbox starts.
fn create_path(spec: &LaunchSpec) -> CreatePath {
    if spec.source.restored_from().is_some() { CreatePath::WarmStart } else { CreatePath::ColdStart }
}

/// Returns the record of a sandbox that was started at `now`.
fn first_record(
    id: &SandboxId,
    team: &Team,
    spec: &LaunchSpec,
    resolved: &ResolvedTemplate,
    request: CreateRequest,
    now: OffsetDateTime,
) -> Sandbox {
    let build = &resolved.build;
    Sandbox {
        id: id.clone(),
        team: team.id,
        template: spec.template.clone(),
        build: build.id,
        execution: ExecutionId::generate(),
        state: SandboxState::Running,
        started_at: now,
        end_at: now + Duration::seconds(request.timeout),
        ended_at: None,
        end_reason: None,
        pause: None,
        details: SandboxDetails {
            alias: resolved.alias.clone(),
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
            identity_tokens: request.identity_tokens,
            volume_mounts: spec.volumes.clone(),
        },
    }
}
