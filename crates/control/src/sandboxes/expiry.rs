//! The timer of a running sandbox: when its time is up it is paused or killed, as its owner asked for.
//! Code in a sandbox can make its memory impossible to capture. So that it cannot outlive its time, a pause that fails is tried
//! [`MAX_PAUSES`] times, then once without memory, and after that the sandbox is killed. Its owner may have it killed without that last
//! attempt.

use std::sync::Arc;

use logs::LogLevel;
use store::PauseFallback;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::running::wait_for_exit;
use super::{EndReason, PauseRequest, RunningSandbox, TimeLimit};
use crate::{Control, ControlError};

/// Maximum number of attempts to pause a sandbox as its owner asked for.
pub(super) const MAX_PAUSES: u32 = 3;

impl Control {
    /// Ends a sandbox when its time is up, and records its end when it exits by itself. Returns when it is over.
    pub(super) async fn watch_over(self: &Arc<Self>, running: &Arc<RunningSandbox>) {
        let mut time_limit = running.time_limit.subscribe();
        let mut exit = running.engine.exit();
        loop {
            let deadline = time_limit.borrow_and_update().deadline;
            tokio::select! {
                biased;
                () = running.wait_ended() => return,
                reason = wait_for_exit(&mut exit) => {
                    if let Err(error) = self.end(running, EndReason::Exited(reason)).await {
                        tracing::error!(sandbox_id = %running.id, %error, "failed to release an exited sandbox");
                    }
                    return;
                }
                // The deadline was moved.
                _ = time_limit.changed() => {}
                () = tokio::time::sleep_until(deadline) => self.expire(running).await,
            }
        }
    }

    async fn expire(self: &Arc<Self>, running: &Arc<RunningSandbox>) {
        {
            let _transition = running.transition.lock().await;
            // The deadline may have been moved while this task waited for the lock.
            if running.has_ended() || running.time_limit.borrow().deadline > Instant::now() {
                return;
            }
            if let Some(reason) = kill_reason(running) {
                self.withdraw(running, &reason);
            }
        }
        if let Err(error) = self.end_on_timeout(running).await {
            tracing::error!(sandbox_id = %running.id, %error, "failed to stop or pause an expired sandbox");
        }
        if !running.has_ended() {
            // It was not even frozen, so this run continues; after a later failure its successor has its own timer.
            let again = OffsetDateTime::now_utc() + self.config.pause_retry;
            let _ = running.time_limit.send_replace(TimeLimit::until(again));
        }
    }

    /// Pauses or kills a sandbox, whichever its owner asked for at the end of its time.
    pub(super) async fn end_on_timeout(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
    ) -> Result<(), ControlError> {
        if let Some(reason) = kill_reason(running) {
            let why = running.failed_pauses.lock().reason.clone();
            if reason == EndReason::Unpausable {
                tracing::warn!(
                    sandbox_id = %running.id, team_id = %running.team, reason = why,
                    "killing an expired sandbox that cannot be paused"
                );
                let text = "sandbox killed, as it could not be paused";
                self.log(running, LogLevel::Error, text, &[("reason", why)]);
            }
            return self.end(running, reason).await;
        }
        let memory = running.lifecycle().auto_pause_memory;
        let request = if running.failed_pauses.lock().count < MAX_PAUSES {
            PauseRequest { memory, ..Default::default() }
        } else {
            PauseRequest { memory: false, accept_silent: true, ..Default::default() }
        };
        self.pause_expired(running, request).await
    }
}

/// Returns why a sandbox whose time is up is killed; `None` if it is to be paused.
fn kill_reason(running: &RunningSandbox) -> Option<EndReason> {
    if !running.lifecycle().auto_pause {
        return Some(EndReason::Timeout);
    }
    let max_failures = match running.lifecycle().auto_pause_fallback {
        // After the attempts that its owner asked for comes one without memory.
        PauseFallback::Filesystem => MAX_PAUSES + 1,
        PauseFallback::Kill => MAX_PAUSES,
    };
    (running.failed_pauses.lock().count >= max_failures).then_some(EndReason::Unpausable)
}
