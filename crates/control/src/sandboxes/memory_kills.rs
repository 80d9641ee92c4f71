//! Tells owners which process of a sandbox the kernel has killed because a memory limit was reached: a line in the sandbox's log, and an
//! event. A sandbox that has processes killed over and over gets one of each for many of them.

use std::sync::Arc;
use std::time::Duration;

use logs::LogLevel;
use serde_json::json;
use store::EventKind;

use super::RunningSandbox;
use crate::Control;

/// Minimum time between two reports about a sandbox.
const PAUSE: Duration = Duration::from_secs(10);

impl Control {
    /// Reports kills until the sandbox ends.
    pub(super) async fn follow_memory_kills(&self, running: &Arc<RunningSandbox>) {
        let mut kills = running.engine.memory_kills();
        let mut reported = kills.borrow().count;
        loop {
            tokio::select! {
                () = running.wait_ended() => return,
                // An engine that does not see them.
                changed = kills.changed() => if changed.is_err() { return },
            }
            let kill = kills.borrow_and_update().clone();
            let count = kill.count.saturating_sub(reported);
            reported = kill.count;
            let fields = [
                ("process", kill.process.clone()),
                ("killed", count.to_string()),
                ("memory_mib", running.details().memory_mib.to_string()),
            ];
            let message = "out of memory: the memory limit was reached and the kernel killed a process";
            self.log(running, LogLevel::Warn, message, &fields);
            tracing::info!(
                sandbox_id = %running.id, team_id = %running.team, process = %kill.process, host_pid = kill.host_pid,
                killed = count, "the kernel killed a process of a sandbox for want of memory"
            );
            let data = json!({ "out_of_memory": { "process": kill.process, "killed": count } });
            self.events
                .record(EventKind::Updated, &**running, data.as_object().cloned().unwrap_or_default())
                .await;
            tokio::select! {
                () = running.wait_ended() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}
