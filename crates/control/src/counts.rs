//! Numbers of sandboxes, for the server's metrics.

use telemetry::SandboxCounts;

use crate::Control;

impl Control {
    /// Returns how many sandboxes run, are paused, and are pre-started.
    #[must_use]
    pub fn sandbox_counts(&self) -> SandboxCounts {
        SandboxCounts {
            running: self.registry.running_count(),
            paused: self.registry.all_paused().len(),
            prestarted: self.pool().iter().map(|report| report.ready).sum(),
        }
    }
}
