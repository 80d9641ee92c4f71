//! Captures running sandboxes as snapshots, and says whether this server can capture memory.

use engine::{Durability, EngineError};
use ids::{SandboxId, SnapshotId};
use telemetry::CaptureKind;
use tracing::field::{Empty, display};
use tracing::{Span, instrument};

use super::RunningSandbox;
use crate::{Control, ControlError};

impl Control {
    /// Captures a running sandbox as a new snapshot and returns its id. The caller holds the sandbox's lock.
    #[instrument(
        name = "capture", skip_all,
        fields(sandbox_id = %running.id, team_id = %running.team, snapshot_id = Empty, kind = ?kind, memory = memory)
    )]
    pub(super) async fn capture(
        &self,
        running: &RunningSandbox,
        kind: CaptureKind,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotId, ControlError> {
        let snapshot = SnapshotId::generate();
        Span::current().record("snapshot_id", display(snapshot));
        let timer = telemetry::capture_timer(kind);
        let captured = running.engine.capture(snapshot, memory, durability).await;
        let captured = captured.map_err(|error| capture_error(&running.id, &error))?;
        timer.succeeded();
        tracing::info!(
            sandbox_id = %running.id, snapshot_id = %snapshot, memory = captured.memory,
            memory_bytes = captured.memory_bytes,
            stopped_us = u64::try_from(captured.stopped.as_micros()).unwrap_or(u64::MAX), "sandbox captured"
        );
        Ok(snapshot)
    }

    /// Refuses what needs memory snapshots on a server without any engine that has them.
    pub(super) fn check_memory_snapshots(&self) -> Result<(), ControlError> {
        // Another engine than the sandbox's may have them; the sandbox's engine then refuses the capture.
        if self.engines().iter().any(|engine| engine.capabilities.memory_snapshots) {
            return Ok(());
        }
        Err(ControlError::Unsupported(format!(
            "this server cannot capture the memory of sandboxes (engine '{}'; `cofferdam doctor` says what is \
             missing); without memory (memory: false, autoPauseMemory: false) it can",
            self.engine().name
        )))
    }
}

/// Logs a failed capture and returns what the caller sees.
pub(super) fn capture_error(id: &SandboxId, error: &EngineError) -> ControlError {
    tracing::warn!(sandbox_id = %id, %error, "failed to capture a sandbox");
    match error {
        EngineError::NotFound => ControlError::SandboxNotFound(id.clone()),
        EngineError::Unsupported(_) => ControlError::Unsupported(error.for_clients()),
        EngineError::Uncapturable(_) => ControlError::Uncapturable(error.for_clients()),
        EngineError::Exhausted(_) | EngineError::Timeout(_) => {
            ControlError::CaptureFailed(format!("the sandbox could not be captured: {}", error.for_clients()))
        }
        // Whatever failed, this is what it means for the caller.
        _ => ControlError::CaptureFailed(EngineError::Capture(String::new()).for_clients()),
    }
}
