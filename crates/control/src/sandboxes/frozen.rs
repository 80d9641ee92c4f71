//! Kills the frozen processes of paused sandboxes when their time is up, when there are too many, and when memory gets scarce.
//! They are a cache: the sandbox's snapshot is complete without them, and a resume then restores it.

use std::sync::Arc;

use tokio::time::Instant;

use super::{PausedSandbox, begin_transition};
use crate::Control;

impl Control {
    /// Kills frozen processes that are no longer worth their memory, until the server shuts down.
    pub(crate) async fn evict_frozen(self: Arc<Self>) {
        loop {
            let all_paused = self.registry.all_paused().into_iter();
            let mut frozen: Vec<_> =
                all_paused.filter_map(|paused| Some((paused.frozen_until()?, paused))).collect();
            frozen.sort_by_key(|(until, _)| *until);
            let surplus = frozen.len().saturating_sub(self.config.keep_frozen_max);
            let due = frozen.iter().take_while(|(until, _)| *until <= Instant::now()).count();
            for (_, paused) in frozen.drain(..surplus.max(due)) {
                self.kill_frozen(paused);
            }
            let next = frozen.first().map(|(until, _)| *until);
            tokio::select! {
                () = self.frozen_added.notified() => {}
                () = crate::sleep_until(next) => {}
                () = self.engine.memory_pressure(), if !frozen.is_empty() => {
                    tracing::info!(kept = frozen.len(), "memory is scarce: killing the frozen processes of paused sandboxes");
                    for (_, paused) in frozen {
                        self.kill_frozen(paused);
                    }
                }
            }
        }
    }

    fn kill_frozen(self: &Arc<Self>, paused: Arc<PausedSandbox>) {
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            // A resume has to wait: the restored sandbox has the same id and files.
            let _transition = begin_transition(&paused.transition).await;
            let Some(sandbox) = paused.take_frozen() else { return };
            if let Err(error) = control.kill_in_engine(&sandbox, paused.record.team, None).await {
                tracing::error!(sandbox_id = %paused.record.id, %error, "failed to kill frozen processes cleanly");
            }
        });
    }
}
