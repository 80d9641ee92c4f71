//! [`RunningSandbox`]: a running sandbox in memory. It leaves the registry before anything of it is torn down, so a sandbox that was
//! found there can be used.

use std::sync::Arc;

use engine::{ExitReason, Sandbox as EngineSandbox};
use ids::{BuildId, ExecutionId, SandboxId, TeamId, TemplateId};
use limits::QuotaReservation;
use parking_lot::{Mutex, RwLock};
use store::{Lifecycle, NetworkConfig, Pause, Sandbox, SandboxDetails, SandboxState};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{TimeLimit, TransitionLock};
use crate::metrics::Meter;

/// Why a sandbox is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// Its owner killed it.
    Request,
    /// The operator killed it.
    Admin,
    /// Its time was up.
    Timeout,
    /// Its time was up and it was to be paused, but that failed again and again.
    Unpausable,
    /// It was paused; a resume continues it as another [`RunningSandbox`].
    Paused,
    /// It was rolled back, and continues as another [`RunningSandbox`].
    RolledBack,
    /// PID 1 exited.
    Exited(ExitReason),
    /// It was gone when the server started again.
    Lost,
}

impl EndReason {
    /// Returns its name in the store.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Admin => "admin",
            Self::Timeout => "timeout",
            Self::Unpausable => "pause failed",
            Self::Paused => "paused",
            Self::RolledBack => "rolled back",
            Self::Exited(_) => "exited",
            Self::Lost => "lost",
        }
    }

    /// Returns its name in events: E2B's where it has one.
    pub(super) fn event_reason(&self) -> &'static str {
        match self {
            Self::Lost => "orphaned",
            other => other.as_str(),
        }
    }
}

/// Attempts to pause a sandbox whose time is up that failed since its owner last set its time.
#[derive(Debug, Clone, Default)]
pub(super) struct FailedPauses {
    pub(super) count: u32,
    /// Why the last one failed.
    pub(super) reason: String,
}

/// Waits until PID 1 has exited.
pub(super) async fn wait_for_exit(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    match exit.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or(ExitReason::Unknown),
        // The engine dropped the sandbox without a reason.
        Err(_) => ExitReason::Unknown,
    }
}

/// A running sandbox.
pub struct RunningSandbox {
    /// Its id.
    pub id: SandboxId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its template.
    pub template: TemplateId,
    /// The build of the template.
    pub build: BuildId,
    /// The id of this run.
    pub execution: ExecutionId,
    /// When this run began.
    pub started_at: OffsetDateTime,
    /// The engine's handle.
    pub(crate) engine: Arc<dyn EngineSandbox>,
    /// State of its metrics sampling; held while a sample is taken.
    pub(crate) meter: tokio::sync::Mutex<Meter>,
    /// Held across every change of its state.
    pub(crate) transition: TransitionLock,
    /// Its time limit, which its timer follows.
    pub(super) time_limit: watch::Sender<TimeLimit>,
    /// Failed attempts to pause it at the end of its time.
    pub(super) failed_pauses: Mutex<FailedPauses>,
    /// The rest of its record, which may change.
    details: RwLock<SandboxDetails>,
    /// Set once, when it is over.
    ended: watch::Sender<Option<EndReason>>,
    /// Counts as one of its team's sandboxes until nothing of it is alive.
    reservation: Mutex<Option<QuotaReservation>>,
}

impl RunningSandbox {
    pub(super) fn new(
        record: Sandbox,
        engine: Arc<dyn EngineSandbox>,
        time_limit: TimeLimit,
        reservation: QuotaReservation,
        transition: TransitionLock,
    ) -> Arc<Self> {
        engine.set_team(record.team);
        Arc::new(Self {
            id: record.id,
            team: record.team,
            template: record.template,
            build: record.build,
            execution: record.execution,
            started_at: record.started_at,
            engine,
            meter: tokio::sync::Mutex::default(),
            transition,
            time_limit: watch::Sender::new(time_limit),
            failed_pauses: Mutex::default(),
            details: RwLock::new(record.details),
            ended: watch::Sender::new(None),
            reservation: Mutex::new(Some(reservation)),
        })
    }

    /// Connects to a TCP port on the sandbox's loopback interface.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there; `NotConnected` when the sandbox is over.
    pub async fn dial(&self, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        if self.has_ended() {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        self.engine.dial(port).await
    }

    /// Returns a receiver that becomes `Some` when the sandbox is over. By then it has left the registry.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<Option<EndReason>> {
        self.ended.subscribe()
    }

    /// Waits until it is over.
    pub async fn wait_ended(&self) {
        // The sender lives as long as `self`: the wait cannot fail.
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    /// Returns whether it is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Returns when its time is up.
    #[must_use]
    pub fn end_at(&self) -> OffsetDateTime {
        self.time_limit.borrow().end_at
    }

    /// Returns a copy of the rest of its record.
    #[must_use]
    pub fn details(&self) -> SandboxDetails {
        self.details.read().clone()
    }

    /// Returns whether its ports can be reached without the traffic token.
    #[must_use]
    pub fn allows_public_traffic(&self) -> bool {
        self.with_network(|network| network.allow_public_traffic).flatten().unwrap_or(true)
    }

    /// Returns the Host header that its servers get, with `${PORT}` for the port, if its owner set one.
    #[must_use]
    pub fn mask_request_host(&self) -> Option<String> {
        self.with_network(|network| network.mask_request_host.clone()).flatten()
    }

    /// Returns what happens at the end of its time.
    #[must_use]
    pub fn lifecycle(&self) -> Lifecycle {
        self.details.read().lifecycle
    }

    fn with_network<T>(&self, look: impl FnOnce(&NetworkConfig) -> T) -> Option<T> {
        self.details.read().network.as_ref().map(look)
    }

    pub(super) fn set_details(&self, details: SandboxDetails) {
        *self.details.write() = details;
    }

    /// Marks it as over, which cuts its connections; the first reason stays.
    pub(super) fn mark_ended(&self, reason: &EndReason) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            if is_first {
                *ended = Some(reason.clone());
            }
            is_first
        });
    }

    /// Gives its place among its team's sandboxes to the caller; `None` if another task has it.
    pub(super) fn take_reservation(&self) -> Option<QuotaReservation> {
        self.reservation.lock().take()
    }

    /// Returns whether a pause or rollback ended this run, so that the sandbox itself lives on.
    pub(super) fn was_succeeded(&self) -> bool {
        matches!(*self.ended.borrow(), Some(EndReason::Paused | EndReason::RolledBack))
    }

    /// Returns its record for the store.
    pub(crate) fn record(&self) -> Sandbox {
        Sandbox {
            id: self.id.clone(),
            team: self.team,
            template: self.template.clone(),
            build: self.build,
            execution: self.execution,
            state: SandboxState::Running,
            started_at: self.started_at,
            end_at: self.end_at(),
            ended_at: None,
            end_reason: None,
            pause: None,
            details: self.details(),
        }
    }

    /// Returns what users see of it.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.record().into()
    }
}

impl std::fmt::Debug for RunningSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningSandbox")
            .field("id", &self.id)
            .field("execution", &self.execution)
            .finish_non_exhaustive()
    }
}

impl From<&RunningSandbox> for events::Subject {
    fn from(running: &RunningSandbox) -> Self {
        Self::from(&running.record())
    }
}

/// What users see of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInfo {
    /// Its id.
    pub id: SandboxId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its template.
    pub template: TemplateId,
    /// Running or paused.
    pub state: SandboxState,
    /// When this run began.
    pub started_at: OffsetDateTime,
    /// When its time is up, or when it was paused.
    pub end_at: OffsetDateTime,
    /// What a paused sandbox is resumed from.
    pub pause: Option<Pause>,
    /// The rest of its record.
    pub details: SandboxDetails,
}

impl From<Sandbox> for SandboxInfo {
    fn from(record: Sandbox) -> Self {
        Self {
            id: record.id,
            team: record.team,
            template: record.template,
            state: record.state,
            started_at: record.started_at,
            end_at: record.pause.as_ref().map_or(record.end_at, |pause| pause.at),
            pause: record.pause,
            details: record.details,
        }
    }
}
