//! The moment a sandbox goes live: it enters the registry, its timer starts, and its log and metrics are followed.

use std::sync::Arc;

use super::RunningSandbox;
use crate::Control;

impl Control {
    /// Registers a started, resumed or adopted sandbox and watches over it until it ends.
    pub(super) fn go_live(self: &Arc<Self>, running: Arc<RunningSandbox>) {
        self.registry.insert_running(Arc::clone(&running));
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            // All end with the sandbox.
            let watch = async {
                tokio::join!(
                    control.watch_over(&running),
                    control.follow_logs(&running),
                    control.sample_metrics(&running),
                    control.follow_memory_kills(&running),
                )
            };
            tokio::select! {
                () = control.closing.cancelled() => {}
                _ = watch => {}
            }
        });
    }
}
