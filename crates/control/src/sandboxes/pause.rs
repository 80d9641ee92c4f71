//! Pauses a sandbox: it leaves the registry's running sandboxes, its connections are cut, it is frozen and captured, and only when
//! its record is durable is the call answered. If anything fails the sandbox continues. Two pauses at once become one.
//! A silent envd does not prevent a pause, unless the caller asks for a healthy one or only files are kept.

use std::sync::Arc;
use std::time::Duration;

use engine::Durability;
use ids::{SandboxId, TeamId};
use logs::LogLevel;
use serde_json::Map;
use store::{EventKind, Pause, Sandbox, SandboxState, truncate_to_micros};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::capture::capture_error;
use super::expiry::MAX_PAUSES;
use super::{AnySandbox, EndReason, PausedSandbox, RunningSandbox, TimeLimit, begin_transition};
use crate::{Control, ControlError, envd};

/// Maximum time in which envd must answer to count as healthy.
const MAX_HEALTH: Duration = Duration::from_secs(2);

/// How to pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseRequest {
    /// Whether to keep the memory; without it a resume is a cold start on the files.
    pub memory: bool,
    /// Whether to refuse when envd does not answer.
    pub require_healthy: bool,
    /// Whether to pause without memory although envd does not answer; usually that is refused, as files may then be incomplete.
    pub accept_silent: bool,
}

impl Default for PauseRequest {
    fn default() -> Self {
        Self { memory: true, require_healthy: false, accept_silent: false }
    }
}

impl Control {
    /// Pauses a team's running sandbox. When it returns, the sandbox survives a power failure.
    ///
    /// # Errors
    /// There is no such sandbox; `Conflict` when it is paused already; after other errors, such as `CaptureFailed`, it is still
    /// running.
    pub async fn pause(
        self: &Arc<Self>,
        team: TeamId,
        id: &SandboxId,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        match self.any_sandbox(team, id)? {
            AnySandbox::Running(running) => self.pause_running(&running, request).await,
            AnySandbox::Paused(paused) if paused.record.pause.is_none() => {
                // Another call is pausing it: its result is the result of this one, too.
                drop(begin_transition(&paused.transition).await);
                match self.any_sandbox(team, id)? {
                    AnySandbox::Paused(_) => Ok(()),
                    AnySandbox::Running(_) => {
                        Err(ControlError::CaptureFailed(format!("Error pausing sandbox '{id}'")))
                    }
                }
            }
            AnySandbox::Paused(_) => Err(ControlError::Conflict(format!(
                "Error pausing sandbox - sandbox '{id}' is already paused"
            ))),
        }
    }

    /// Pauses a running sandbox in a task of its own.
    async fn pause_running(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        self.pause_in_task(running, request, false).await
    }

    /// Pauses a sandbox whose time is up, in a task of its own. Failures are counted, except those of the database: code in the
    /// sandbox cannot cause them.
    pub(super) async fn pause_expired(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        self.pause_in_task(running, request, true).await
    }

    async fn pause_in_task(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        request: PauseRequest,
        has_expired: bool,
    ) -> Result<(), ControlError> {
        let (control, running) = (Arc::clone(self), Arc::clone(running));
        let pause = async move {
            let _transition = begin_transition(&running.transition).await;
            if running.has_ended() {
                // Another call has paused it meanwhile, or it has ended.
                let is_paused = control.registry.paused(&running.id).is_some();
                let not_found = || Err(ControlError::SandboxNotFound(running.id.clone()));
                return if is_paused { Ok(()) } else { not_found() };
            }
            control.pause_locked(&running, request, has_expired).await
        };
        let task = self.tasks.spawn(pause.in_current_span());
        task.await.unwrap_or(Err(ControlError::Engine("failed to pause the sandbox; see the server's log")))
    }

    /// Pauses a running sandbox whose lock is held.
    async fn pause_locked(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        request: PauseRequest,
        has_expired: bool,
    ) -> Result<(), ControlError> {
        let failed = |error: ControlError| {
            if has_expired && !matches!(error, ControlError::Store(_)) {
                let mut failures = running.failed_pauses.lock();
                failures.count += 1;
                failures.reason = error.to_string();
            }
            error
        };
        if request.memory {
            self.check_memory_snapshots().map_err(failed)?;
        }
        let health = tokio::time::timeout(MAX_HEALTH, envd::health(&*running.engine)).await;
        let unresponsive = !matches!(health, Ok(Ok(())));
        if unresponsive && (request.require_healthy || !request.memory && !request.accept_silent) {
            return Err(failed(ControlError::EnvdSilent(format!(
                "Sandbox '{}' cannot be paused: its envd does not respond; it keeps running",
                running.id
            ))));
        }
        let record = Sandbox { state: SandboxState::Paused, ..running.record() };
        self.registry.insert_paused(PausedSandbox::new(record.clone(), Arc::clone(&running.transition)));
        running.mark_ended(&EndReason::Paused);
        match self.freeze_and_capture(running, record, request.memory, unresponsive).await {
            Ok(record) => {
                self.finish_pause(running, record).await;
                Ok(())
            }
            Err(error) => {
                let error = failed(error);
                self.continue_after_failed_pause(running, &error).await;
                Err(error)
            }
        }
    }

    /// Freezes and captures a sandbox and stores its record, which it returns.
    async fn freeze_and_capture(
        &self,
        running: &RunningSandbox,
        record: Sandbox,
        memory: bool,
        unresponsive: bool,
    ) -> Result<Sandbox, ControlError> {
        running.engine.freeze().await.map_err(|error| capture_error(&running.id, &error))?;
        let snapshot = self.capture(running, CaptureKind::Pause, memory, Durability::Durable).await?;
        let pause = Pause {
            snapshot,
            owned: true,
            memory,
            captured_from: running.id.clone(),
            at: truncate_to_micros(OffsetDateTime::now_utc()),
            unresponsive,
        };
        let record = Sandbox { pause: Some(pause), ..record };
        if let Err(error) = self.store.put_sandbox(&record).await {
            self.snapshots.discard(snapshot).await;
            return Err(error.into());
        }
        Ok(record)
    }

    /// Keeps the frozen processes of a sandbox that is durably paused, or kills them.
    async fn finish_pause(self: &Arc<Self>, running: &Arc<RunningSandbox>, record: Sandbox) {
        let memory = record.pause.as_ref().is_some_and(|pause| pause.memory);
        let mut data = Map::from_iter([("memory".to_owned(), memory.into())]);
        let failures = running.failed_pauses.lock().clone();
        let is_fallback = !memory && running.lifecycle().auto_pause_memory && failures.count >= MAX_PAUSES;
        if is_fallback {
            data.insert("fallback_reason".to_owned(), failures.reason.clone().into());
        }
        self.events.record(EventKind::Paused, &record, data).await;
        let paused = PausedSandbox::new(record, Arc::clone(&running.transition));
        let place = running.take_reservation();
        if memory && self.config.keep_frozen_max > 0 && !self.config.keep_frozen.is_zero() {
            paused.keep_frozen(Arc::clone(&running.engine), Instant::now() + self.config.keep_frozen);
            self.frozen_added.notify_one();
        } else if let Err(error) = self.kill_in_engine(&running.engine, running.team, place).await {
            tracing::error!(sandbox_id = %running.id, %error, "failed to kill a paused sandbox's processes cleanly");
        }
        self.registry.insert_paused(paused);
        if is_fallback {
            let fields = [("memory", memory.to_string()), ("reason", failures.reason)];
            self.log(
                running,
                LogLevel::Warn,
                "sandbox paused without its memory, which could not be captured",
                &fields,
            );
        } else {
            self.log(running, LogLevel::Info, "sandbox paused", &[("memory", memory.to_string())]);
        }
        tracing::info!(sandbox_id = %running.id, team_id = %running.team, memory, "sandbox paused");
    }

    /// Lets the same run continue after a failed pause; only its connections are lost. If its time is up meanwhile and it must not
    /// be killed, it gets more time, or it would be stopped again at once.
    async fn continue_after_failed_pause(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        failure: &ControlError,
    ) {
        if let Err(error) = running.engine.thaw().await {
            tracing::error!(sandbox_id = %running.id, %error, "failed to thaw a sandbox after a failed pause");
        }
        let place = running.take_reservation();
        let reservation = place.unwrap_or_else(|| self.quota.reserve_unlimited(running.team));
        let mut record = running.record();
        if running.lifecycle().auto_pause {
            record.end_at =
                record.end_at.max(truncate_to_micros(OffsetDateTime::now_utc() + self.config.pause_retry));
            if let Err(error) = self.store.put_sandbox(&record).await {
                tracing::warn!(sandbox_id = %running.id, %error, "failed to record a sandbox's additional time");
            }
        }
        let time_limit = TimeLimit::until(record.end_at);
        let (engine, transition) = (Arc::clone(&running.engine), Arc::clone(&running.transition));
        let continued = RunningSandbox::new(record, engine, time_limit, reservation, transition);
        *continued.failed_pauses.lock() = running.failed_pauses.lock().clone();
        let fields = [("reason", failure.to_string())];
        self.log(&continued, LogLevel::Warn, "sandbox could not be paused", &fields);
        self.go_live(continued);
    }
}
