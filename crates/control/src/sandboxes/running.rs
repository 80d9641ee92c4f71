//! A running sandbox in memory.
//! A sandbox leaves the table before anything of it is torn down, so whoever finds it may use it.
//! `transition` is held across every change of state; `timing` only for a look.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use engine::{ExitReason, Sandbox as EngineSandbox};
use ids::{BuildId, ExecutionId, SandboxId, TeamId, TemplateId};
use store::{Lifecycle, NetworkConfig, Pause, Sandbox, SandboxDetails, SandboxState};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::Reservation;
use crate::metrics::Meter;

/// Why a sandbox is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// Somebody asked for it.
    Request,
    /// The operator asked for it.
    Admin,
    /// Its time was up.
    Timeout,
    /// It was captured and stands still: it may go on as another [`Live`].
    Paused,
    /// Its owner put it back to an earlier state: it goes on as another [`Live`].
    RolledBack,
    /// PID 1 ended.
    Exited(ExitReason),
    /// It was gone when the server came back.
    Lost,
}

impl EndReason {
    /// As kept in the store.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Admin => "admin",
            Self::Timeout => "timeout",
            Self::Paused => "paused",
            Self::RolledBack => "rolled back",
            Self::Exited(_) => "exited",
            Self::Lost => "lost",
        }
    }
}

/// Waits until PID 1 has ended.
pub(crate) async fn wait_for_exit(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    match exit.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or(ExitReason::Unknown),
        // The engine let go of it without a word.
        Err(_) => ExitReason::Unknown,
    }
}

/// When a sandbox's time is up, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// What users are told.
    pub(crate) end_at: OffsetDateTime,
    /// What the timer waits for.
    pub(crate) deadline: Instant,
}

impl Timing {
    pub(crate) fn until(end_at: OffsetDateTime) -> Self {
        let end_at = store::truncate_to_micros(end_at);
        let left = end_at - OffsetDateTime::now_utc();
        // A negative rest is a deadline that has passed.
        let left = std::time::Duration::try_from(left).unwrap_or_default();
        Self { end_at, deadline: Instant::now() + left }
    }
}

/// Held across every change of a sandbox's state; the same one from its first start to its end, through every pause.
pub(crate) type Transition = Arc<tokio::sync::Mutex<()>>;

/// A running sandbox.
pub struct Live {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub team: TeamId,
    /// The template it came from.
    pub template: TemplateId,
    /// The build of it.
    pub build: BuildId,
    /// This run of it.
    pub execution: ExecutionId,
    /// When this run began.
    pub started_at: OffsetDateTime,
    /// The engine's handle.
    pub(crate) engine: Arc<dyn EngineSandbox>,
    /// What its samples are measured from; held while one is taken.
    pub(crate) meter: tokio::sync::Mutex<Meter>,
    /// Held across every change of state.
    pub(crate) transition: Transition,
    /// Its time limit; the timer follows it.
    pub(crate) timing: watch::Sender<Timing>,
    /// What may change and is only carried along.
    details: RwLock<SandboxDetails>,
    /// Set once, when it is over.
    ended: watch::Sender<Option<EndReason>>,
    /// The place it takes among its team's sandboxes, given back when it ends.
    reservation: Mutex<Option<Reservation>>,
}

impl Live {
    pub(crate) fn new(
        record: Sandbox,
        engine: Arc<dyn EngineSandbox>,
        timing: Timing,
        reservation: Reservation,
        transition: Transition,
    ) -> Arc<Self> {
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
            timing: watch::Sender::new(timing),
            details: RwLock::new(record.details),
            ended: watch::Sender::new(None),
            reservation: Mutex::new(Some(reservation)),
        })
    }

    /// Connects to a TCP port on the sandbox's loopback.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there; `NotConnected` when the sandbox is over.
    pub async fn dial(&self, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        if self.has_ended() {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        self.engine.dial(port).await
    }

    /// Becomes `Some` when the sandbox is over. By then it is in no table any more.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<Option<EndReason>> {
        self.ended.subscribe()
    }

    /// Waits until it is over.
    pub async fn wait_ended(&self) {
        // The sender lives as long as `self`: the wait cannot fail.
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// When its time is up.
    #[must_use]
    pub fn end_at(&self) -> OffsetDateTime {
        self.timing.borrow().end_at
    }

    /// A copy of what is carried along.
    #[must_use]
    pub fn details(&self) -> SandboxDetails {
        self.details.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its ports are open without the traffic token.
    #[must_use]
    pub fn allows_public_traffic(&self) -> bool {
        self.with_network(|network| network.allow_public_traffic).flatten().unwrap_or(true)
    }

    /// The Host header its servers shall see, with `${PORT}` for the port.
    #[must_use]
    pub fn mask_request_host(&self) -> Option<String> {
        self.with_network(|network| network.mask_request_host.clone()).flatten()
    }

    /// What happens at the end of its time.
    #[must_use]
    pub fn lifecycle(&self) -> Lifecycle {
        self.details.read().unwrap_or_else(PoisonError::into_inner).lifecycle
    }

    fn with_network<T>(&self, look: impl FnOnce(&NetworkConfig) -> T) -> Option<T> {
        self.details.read().unwrap_or_else(PoisonError::into_inner).network.as_ref().map(look)
    }

    pub(crate) fn set_details(&self, details: SandboxDetails) {
        *self.details.write().unwrap_or_else(PoisonError::into_inner) = details;
    }

    /// Marks it as over, which cuts its connections; true for the first to do so.
    pub(crate) fn mark_ended(&self, reason: &EndReason) -> bool {
        self.reservation.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason.clone());
            }
            first
        })
    }

    /// What is remembered of it while it runs.
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

    /// Whether it goes on as another one.
    pub(crate) fn was_succeeded(&self) -> bool {
        matches!(*self.ended.borrow(), Some(EndReason::Paused | EndReason::RolledBack))
    }

    /// What users are told.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        SandboxInfo {
            id: self.id.clone(),
            team: self.team,
            template: self.template.clone(),
            state: SandboxState::Running,
            started_at: self.started_at,
            end_at: self.end_at(),
            pause: None,
            details: self.details(),
        }
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("id", &self.id)
            .field("execution", &self.execution)
            .finish_non_exhaustive()
    }
}

/// What users are told about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInfo {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub team: TeamId,
    /// The template it came from.
    pub template: TemplateId,
    /// Running or paused.
    pub state: SandboxState,
    /// When this run began.
    pub started_at: OffsetDateTime,
    /// When its time is up; when it was paused, if it is.
    pub end_at: OffsetDateTime,
    /// What a paused one is brought back from.
    pub pause: Option<Pause>,
    /// The rest.
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
