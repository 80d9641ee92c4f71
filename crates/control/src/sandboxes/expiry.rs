//! The timer of a running sandbox: when its time is up it is paused or killed, as its owner asked for.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::pause::RETRY_PAUSE;
use super::running::wait_for_exit;
use super::{EndReason, PauseRequest, RunningSandbox, TimeLimit};
use crate::{Control, ControlError};

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
            if !running.lifecycle().auto_pause {
                self.withdraw(running, &EndReason::Timeout);
            }
        }
        if let Err(error) = self.end_on_timeout(running).await {
            tracing::error!(sandbox_id = %running.id, %error, "failed to stop or pause an expired sandbox");
        }
        if !running.has_ended() {
            // It could not be paused. Killing it would lose what its owner wanted to keep, so the pause is tried again later.
            let _ =
                running.time_limit.send_replace(TimeLimit::until(OffsetDateTime::now_utc() + RETRY_PAUSE));
        }
    }

    /// Pauses or kills a sandbox, whichever its owner asked for at the end of its time.
    pub(super) async fn end_on_timeout(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
    ) -> Result<(), ControlError> {
        let lifecycle = running.lifecycle();
        if !lifecycle.auto_pause {
            return self.end(running, EndReason::Timeout).await;
        }
        let request = PauseRequest { memory: lifecycle.auto_pause_memory, require_healthy: false };
        self.pause_running(running, request).await
    }
}
