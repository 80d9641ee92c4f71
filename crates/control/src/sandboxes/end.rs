//! The end of a sandbox: asked for, by its timer, or by itself.
//! First it is in no table, then its connections are cut, then the engine takes it apart:
//! nobody sees a half-dead sandbox answer, and an end is only acknowledged when nothing of it is alive.

use std::sync::Arc;

use engine::EngineError;
use ids::{SandboxId, TeamId};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{EndReason, Live, Timing, wait_for_exit};
use crate::sandboxes::{Paused, RETRY_PAUSE};
use crate::{Control, ControlError, LogLevel, PauseRequest};

impl Control {
    /// Ends a team's sandbox. When it returns, nothing of it is alive.
    ///
    /// # Errors
    /// There is no such sandbox, or the engine could not release everything.
    pub async fn kill(self: &Arc<Self>, team: TeamId, id: &SandboxId) -> Result<(), ControlError> {
        loop {
            let is_over = match self.entry(team, id)? {
                Entry::Running(live) => {
                    self.end(&live, EndReason::Request).await?;
                    !live.was_succeeded()
                }
                Entry::Paused(paused) => self.end_paused(paused).await?,
            };
            if is_over {
                return Ok(());
            }
        }
    }

    /// Ends a paused sandbox and removes its captured state. False when it changed before its turn came.
    async fn end_paused(self: &Arc<Self>, paused: Arc<Paused>) -> Result<bool, ControlError> {
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _changing = Arc::clone(&paused.transition).lock_owned().await;
            let Some(pause) = paused.record.pause.as_ref().filter(|_| control.table.holds(&paused)) else {
                return Ok(false);
            };
            let id = &paused.record.id;
            let reason = EndReason::Request;
            // First for good, then the rest: a crash in between leaves remains that the next start sweeps.
            control.store.finish_sandbox(id, OffsetDateTime::now_utc(), reason.as_str()).await?;
            control.table.remove_paused(&paused);
            if let Some(hot) = paused.take_hot()
                && let Err(error) = hot.kill().await
            {
                tracing::error!(sandbox_id = %id, %error, "frozen processes could not be ended cleanly");
            }
            if pause.owned
                && let Err(error) = control.engine.discard(pause.snapshot).await
            {
                tracing::error!(sandbox_id = %id, %error, "a captured state could not be removed");
            }
            control.record_killed(&paused.record, &reason).await;
            tracing::info!(sandbox_id = %id, team_id = %paused.record.team, "paused sandbox ended");
            Ok(true)
        });
        task.await.unwrap_or(Err(ControlError::Engine("ended")))
    }

    /// Puts a started or adopted sandbox into the table, under its timer.
    pub(crate) fn go_live(self: &Arc<Self>, live: Arc<Live>) {
        self.table.insert(Arc::clone(&live));
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            // Following and sampling never outlast the sandbox.
            let attend = async {
                tokio::join!(
                    control.watch_over(&live),
                    control.follow_logs(&live),
                    control.sample_metrics(&live),
                )
            };
            tokio::select! {
                () = control.closing.cancelled() => {}
                _ = attend => {}
            }
        });
    }

    /// Ends it when its time is up or when it ends by itself; returns when it is over.
    async fn watch_over(self: &Arc<Self>, live: &Arc<Live>) {
        let mut timing = live.timing.subscribe();
        let mut exit = live.engine.exit();
        loop {
            let deadline = timing.borrow_and_update().deadline;
            tokio::select! {
                biased;
                () = live.wait_ended() => return,
                reason = wait_for_exit(&mut exit) => {
                    self.end_logged(live, EndReason::Exited(reason)).await;
                    return;
                }
                // Moved, earlier or later: wait anew.
                _ = timing.changed() => {}
                () = tokio::time::sleep_until(deadline) => self.expire(live).await,
            }
        }
    }

    async fn expire(self: &Arc<Self>, live: &Arc<Live>) {
        {
            let _changing = live.transition.lock().await;
            // Somebody may have given it more time while we waited for the lock.
            if live.has_ended() || live.timing.borrow().deadline > Instant::now() {
                return;
            }
            if !live.lifecycle().auto_pause {
                self.withdraw(live, &EndReason::Timeout);
            }
        }
        if let Err(error) = self.run_out(live).await {
            tracing::error!(sandbox_id = %live.id, %error, "a sandbox whose time was up could not be put away");
        }
        if !live.has_ended() {
            // It could not be paused. Ending it would lose what its owner wanted kept: it gets another chance.
            let _ = live.timing.send_replace(Timing::until(OffsetDateTime::now_utc() + RETRY_PAUSE));
        }
    }

    /// What its owner wants at the end of its time.
    pub(crate) async fn run_out(self: &Arc<Self>, live: &Arc<Live>) -> Result<(), ControlError> {
        let lifecycle = live.lifecycle();
        if !lifecycle.auto_pause {
            return self.end(live, EndReason::Timeout).await;
        }
        let request = PauseRequest { memory: lifecycle.auto_pause_memory, require_healthy: false };
        self.pause_live(live, request).await
    }

    async fn end_logged(self: &Arc<Self>, live: &Arc<Live>, reason: EndReason) {
        if let Err(error) = self.end(live, reason).await {
            tracing::error!(sandbox_id = %live.id, %error, "an ended sandbox was not wholly released");
        }
    }

    /// Ends it for this reason unless it is over already; waits in both cases until nothing of it is alive.
    /// Once begun it is finished, even if the caller goes away.
    pub(crate) async fn end(
        self: &Arc<Self>,
        live: &Arc<Live>,
        reason: EndReason,
    ) -> Result<(), ControlError> {
        let control = Arc::clone(self);
        let live = Arc::clone(live);
        let task = self.tasks.spawn(async move {
            let _changing = live.transition.lock().await;
            if live.was_succeeded() {
                return Ok(());
            }
            control.withdraw(&live, &reason);
            let killed = tokio::time::timeout(control.config.kill_timeout, live.engine.kill()).await;
            let killed = killed.unwrap_or(Err(EngineError::Timeout("ending the sandbox")));
            // The reason that counts is the first one.
            let reason = live.ended().borrow().clone().unwrap_or(reason);
            control.record_killed(&*live, &reason).await;
            let recorded =
                control.store.finish_sandbox(&live.id, OffsetDateTime::now_utc(), reason.as_str()).await;
            if let Err(error) = recorded {
                // The next start finds no such sandbox to adopt and makes up for it.
                tracing::error!(sandbox_id = %live.id, %error, "the end of a sandbox was not recorded");
            }
            control.log(&live, LogLevel::Info, "sandbox ended", &[("reason", reason.as_str().to_string())]);
            tracing::info!(sandbox_id = %live.id, team_id = %live.team, reason = reason.as_str(), "sandbox ended");
            killed.map_err(|error| {
                tracing::error!(sandbox_id = %live.id, %error, "the engine could not end a sandbox cleanly");
                ControlError::Engine("ended cleanly")
            })
        });
        task.await.unwrap_or(Err(ControlError::Engine("ended")))
    }

    /// Takes it out of the table and cuts its connections, in this order.
    fn withdraw(&self, live: &Live, reason: &EndReason) {
        self.table.remove(live);
        live.mark_ended(reason);
    }
}
