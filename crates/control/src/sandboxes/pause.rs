//! Pausing: the sandbox leaves the table, its connections are cut, its state is made durable, and only then is it called paused.
//! If the capture fails it goes on as if nothing had been asked. Two who ask at once get one pause.
//! An agent that does not answer is no reason to refuse, unless the caller says so or only files are kept.

use std::sync::Arc;
use std::time::Duration;

use engine::Durability;
use ids::{SandboxId, TeamId};
use serde_json::Map;
use store::{EventKind, Pause, Sandbox, SandboxState, truncate_to_micros};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::{Paused, capture_error};
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{EndReason, Live, Timing};
use crate::{Control, ControlError, LogLevel, envd};

/// How long an agent may take to show that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// When a pause is tried again that failed at the end of a sandbox's time.
pub(crate) const RETRY_PAUSE: time::Duration = time::Duration::seconds(30);

/// How to pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseRequest {
    /// Keep the memory; otherwise a resume is a cold start on the files.
    pub memory: bool,
    /// Refuse when the agent does not answer.
    pub require_healthy: bool,
}

impl Default for PauseRequest {
    fn default() -> Self {
        Self { memory: true, require_healthy: false }
    }
}

impl Control {
    /// Pauses a team's running sandbox. Its state survives a power cut when this returns.
    ///
    /// # Errors
    /// No such sandbox; `Conflict` when it is paused; `CaptureFailed` and others leave it running.
    pub async fn pause(
        self: &Arc<Self>,
        team: TeamId,
        id: &SandboxId,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        match self.entry(team, id)? {
            Entry::Running(live) => self.pause_live(&live, request).await,
            Entry::Paused(paused) if paused.record.pause.is_none() => {
                // Somebody else is at it: that pause is ours, too.
                drop(Self::turn(&paused.transition).await);
                match self.entry(team, id)? {
                    Entry::Paused(_) => Ok(()),
                    Entry::Running(_) => {
                        Err(ControlError::CaptureFailed(format!("Error pausing sandbox '{id}'")))
                    }
                }
            }
            Entry::Paused(_) => Err(ControlError::Conflict(format!(
                "Error pausing sandbox - sandbox '{id}' is already paused"
            ))),
        }
    }

    /// Pauses a running sandbox, in a task of its own.
    pub(crate) async fn pause_live(
        self: &Arc<Self>,
        live: &Arc<Live>,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        if request.memory {
            self.check_memory_snapshots()?;
        }
        let (control, live) = (Arc::clone(self), Arc::clone(live));
        let task = self.tasks.spawn(
            async move {
                let _changing = Self::turn(&live.transition).await;
                if live.has_ended() {
                    // Paused by somebody who was quicker, or gone.
                    let paused = control.table.paused(&live.id).is_some();
                    return if paused { Ok(()) } else { Err(ControlError::SandboxNotFound(live.id.clone())) };
                }
                control.pause_held(&live, request).await
            }
            .in_current_span(),
        );
        task.await.unwrap_or(Err(ControlError::Engine("paused")))
    }

    /// With the sandbox's lock held.
    async fn pause_held(
        self: &Arc<Self>,
        live: &Arc<Live>,
        request: PauseRequest,
    ) -> Result<(), ControlError> {
        let well = tokio::time::timeout(HEALTH_TIMEOUT, envd::health(&*live.engine)).await;
        let unresponsive = !matches!(well, Ok(Ok(())));
        if unresponsive && (request.require_healthy || !request.memory) {
            return Err(ControlError::AgentSilent(format!(
                "Sandbox '{}' cannot be paused: its agent does not answer; it keeps running",
                live.id
            )));
        }
        let mut record = Sandbox { state: SandboxState::Paused, ..live.record() };
        self.table.insert_paused(Paused::new(record.clone(), Arc::clone(&live.transition)));
        live.mark_ended(&EndReason::Paused);
        let paused = async {
            live.engine.freeze().await.map_err(|error| capture_error(&live.id, &error))?;
            let snapshot =
                self.capture(live, CaptureKind::Pause, request.memory, Durability::Durable).await?;
            record.pause = Some(Pause {
                snapshot,
                owned: true,
                memory: request.memory,
                captured_from: live.id.clone(),
                at: truncate_to_micros(OffsetDateTime::now_utc()),
                unresponsive,
            });
            if let Err(error) = self.store.put_sandbox(&record).await {
                self.discard_state(snapshot).await;
                return Err(error.into());
            }
            Ok(record)
        };
        match paused.await {
            Ok(record) => self.settle_paused(live, record).await,
            Err(error) => {
                self.go_on(live, &error).await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The state is durable: whether the processes are kept is a matter of speed only.
    async fn settle_paused(self: &Arc<Self>, live: &Arc<Live>, record: Sandbox) {
        let memory = record.pause.as_ref().is_some_and(|pause| pause.memory);
        self.record_event(EventKind::Paused, &record, Map::from_iter([("memory".to_owned(), memory.into())]))
            .await;
        let paused = Paused::new(record, Arc::clone(&live.transition));
        if memory && self.config.keep_frozen_max > 0 && !self.config.keep_frozen.is_zero() {
            paused.keep_hot(Arc::clone(&live.engine), Instant::now() + self.config.keep_frozen);
            self.cached.notify_one();
        } else if let Err(error) = live.engine.kill().await {
            tracing::error!(sandbox_id = %live.id, %error, "a paused sandbox's processes could not be ended cleanly");
        }
        self.table.insert_paused(paused);
        self.log(live, LogLevel::Info, "sandbox paused", &[("memory", memory.to_string())]);
        tracing::info!(sandbox_id = %live.id, team_id = %live.team, memory, "sandbox paused");
    }

    /// After a failed pause: the same run, its connections lost but nothing else. One whose time is up meanwhile and which may not
    /// be ended gets some more, or it would be stopped again at once, and again.
    async fn go_on(self: &Arc<Self>, live: &Arc<Live>, failure: &ControlError) {
        if let Err(error) = live.engine.thaw().await {
            tracing::error!(sandbox_id = %live.id, %error, "a sandbox could not be thawed after a failed pause");
        }
        let Ok(reservation) = self.places.reserve(live.team, 0) else { return };
        let mut record = live.record();
        if live.lifecycle().auto_pause {
            record.end_at = record.end_at.max(truncate_to_micros(OffsetDateTime::now_utc() + RETRY_PAUSE));
            if let Err(error) = self.store.put_sandbox(&record).await {
                tracing::warn!(sandbox_id = %live.id, %error, "a sandbox's further time was not recorded");
            }
        }
        let timing = Timing::until(record.end_at);
        let live =
            Live::new(record, Arc::clone(&live.engine), timing, reservation, Arc::clone(&live.transition));
        self.log(&live, LogLevel::Warn, "sandbox could not be paused", &[("reason", failure.to_string())]);
        self.go_live(live);
    }
}
