//! Ends sandboxes, running or paused. A running sandbox first leaves the registry, then its connections are cut, then the engine
//! kills it; the call returns only when nothing of it is alive. If a process does not die in time the call fails, the kill goes on in
//! the background, and until it has succeeded the sandbox counts as one of its team's.

use std::sync::Arc;

use engine::{EngineError, Sandbox as EngineSandbox};
use ids::{SandboxId, TeamId};
use limits::QuotaReservation;
use logs::LogLevel;
use time::OffsetDateTime;

use super::{AnySandbox, EndReason, PausedSandbox, RunningSandbox, begin_transition};
use crate::{Control, ControlError};

impl Control {
    /// Kills a team's sandbox. When it returns, nothing of the sandbox is alive.
    ///
    /// # Errors
    /// There is no such sandbox, or the engine could not release everything.
    pub async fn kill(self: &Arc<Self>, team: TeamId, id: &SandboxId) -> Result<(), ControlError> {
        loop {
            let is_over = match self.any_sandbox(team, id)? {
                AnySandbox::Running(running) => {
                    self.end(&running, EndReason::Request).await?;
                    !running.was_succeeded()
                }
                AnySandbox::Paused(paused) => self.end_paused(paused).await?,
            };
            if is_over {
                return Ok(());
            }
        }
    }

    /// Ends a paused sandbox and removes its snapshot. Returns false if its state changed before: then the caller looks again.
    async fn end_paused(self: &Arc<Self>, paused: Arc<PausedSandbox>) -> Result<bool, ControlError> {
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _transition = begin_transition(&paused.transition).await;
            let Some(pause) = paused.record.pause.as_ref().filter(|_| control.registry.holds(&paused)) else {
                return Ok(false);
            };
            let id = &paused.record.id;
            let reason = EndReason::Request;
            // The record first: what a crash leaves after it is swept at the next start.
            control.store.finish_sandbox(id, OffsetDateTime::now_utc(), reason.as_str()).await?;
            control.registry.remove_paused(&paused);
            if let Some(frozen) = paused.take_frozen()
                && let Err(error) = control.kill_in_engine(&frozen, paused.record.team, None).await
            {
                tracing::error!(sandbox_id = %id, %error, "failed to kill frozen processes cleanly");
            }
            if pause.owned {
                control.snapshots.discard(pause.snapshot).await;
            }
            control.events.record_killed(&paused.record, reason.event_reason()).await;
            tracing::info!(sandbox_id = %id, team_id = %paused.record.team, "paused sandbox ended");
            Ok(true)
        });
        task.await.unwrap_or(Err(ControlError::Engine("failed to kill the sandbox; see the server's log")))
    }

    /// Ends a running sandbox unless it is over already; in both cases waits until nothing of it is alive. Once begun it is
    /// finished, even if the caller goes away.
    pub(crate) async fn end(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        reason: EndReason,
    ) -> Result<(), ControlError> {
        let control = Arc::clone(self);
        let running = Arc::clone(running);
        let task = self.tasks.spawn(async move {
            let _transition = running.transition.lock().await;
            if running.was_succeeded() {
                return Ok(());
            }
            control.withdraw(&running, &reason);
            let place = running.take_reservation();
            let killed = control.kill_in_engine(&running.engine, running.team, place).await;
            // If it had been marked as ended before, that reason counts.
            let reason = running.ended().borrow().clone().unwrap_or(reason);
            control.events.record_killed(&*running, reason.event_reason()).await;
            let recorded =
                control.store.finish_sandbox(&running.id, OffsetDateTime::now_utc(), reason.as_str()).await;
            if let Err(error) = recorded {
                // The next start finds no such sandbox to adopt and records its end.
                tracing::error!(sandbox_id = %running.id, %error, "failed to record the end of a sandbox");
            }
            let fields = [("reason", reason.as_str().to_string())];
            control.log(&running, LogLevel::Info, "sandbox ended", &fields);
            tracing::info!(
                sandbox_id = %running.id, team_id = %running.team, reason = reason.as_str(), "sandbox ended"
            );
            killed.map_err(|error| {
                tracing::error!(sandbox_id = %running.id, %error, "failed to kill a sandbox cleanly");
                ControlError::Engine(
                    "failed to kill all processes of the sandbox or to remove its files; see the server's log",
                )
            })
        });
        task.await.unwrap_or(Err(ControlError::Engine("failed to kill the sandbox; see the server's log")))
    }

    /// Kills a sandbox in the engine, within the configured time; afterwards its place is given back. If that fails, the kill goes on
    /// in the background, and the place stays taken until nothing is alive.
    ///
    /// # Errors
    /// Something of it is still alive.
    pub(super) async fn kill_in_engine(
        &self,
        sandbox: &Arc<dyn EngineSandbox>,
        team: TeamId,
        place: Option<QuotaReservation>,
    ) -> Result<(), EngineError> {
        let killed = tokio::time::timeout(self.config.kill_timeout, sandbox.kill()).await;
        let Err(error) = killed.unwrap_or(Err(EngineError::Timeout("ending the sandbox"))) else {
            return Ok(());
        };
        let place = place.unwrap_or_else(|| self.quota.reserve_unlimited(team));
        let (sandbox, closing) = (Arc::clone(sandbox), self.closing.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = sandbox.released() => {
                    tracing::info!(sandbox_id = %sandbox.id(), team_id = %team, "the last process of a killed sandbox has ended");
                }
            }
            drop(place);
        });
        Err(error)
    }

    /// Removes a sandbox from the registry and cuts its connections, in this order.
    pub(super) fn withdraw(&self, running: &RunningSandbox, reason: &EndReason) {
        self.registry.remove_running(running);
        running.mark_ended(reason);
    }
}
