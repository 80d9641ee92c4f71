//! What a sandbox goes through between its first start and its end: pause, resume, snapshot, fork, rollback.
//! All are made of two things the engine can do, capture and restore; the rules of when are here.
//! Each runs in a task of its own under the sandbox's lock: once begun it is finished, whoever goes away.

pub(crate) mod create;
pub(crate) mod egress;
mod end;
mod fork;
pub(crate) mod idempotency;
pub(crate) mod launch;
pub(crate) mod list;
mod pause;
mod paused;
mod recovery;
pub(crate) mod registry;
mod resume;
mod rollback;
pub(crate) mod running;
mod settings;
mod snapshot;

pub use create::{Access, CreateRequest};
pub use egress::egress_policy;
pub use fork::ForkRequest;
pub use idempotency::IdempotencyKey;
pub use list::{ListQuery, Page};
pub use pause::PauseRequest;
pub(crate) use pause::RETRY_PAUSE;
pub(crate) use paused::Paused;
pub use resume::Waking;
pub use running::{EndReason, Live, SandboxInfo};
pub use settings::NetworkUpdate;
pub use snapshot::{SnapshotEntry, SnapshotPage, SnapshotQuery};

use std::sync::Arc;

use engine::{Durability, EngineError, RestoreMode, SnapshotInfo};
use ids::{SandboxId, SnapshotId};
use store::{Pause, Sandbox};
use telemetry::CaptureKind;
use tokio::sync::OwnedMutexGuard;
use tracing::field::{Empty, display};
use tracing::{Span, instrument};

use crate::sandboxes::launch::{Boot, Origin};
use crate::sandboxes::running::Transition;
use crate::{Control, ControlError};

impl Control {
    /// Waits for a sandbox's turn to change.
    async fn turn(transition: &Transition) -> OwnedMutexGuard<()> {
        Arc::clone(transition).lock_owned().await
    }

    /// Removes a captured state that nobody refers to any more. What fails now is swept at the next start.
    pub(crate) async fn discard_state(&self, snapshot: SnapshotId) {
        if let Err(error) = self.engine.discard(snapshot).await {
            tracing::error!(%snapshot, %error, "a captured state could not be removed");
        }
    }

    /// Captures a running sandbox as a snapshot with a new id and returns the id.
    #[instrument(name = "capture", skip_all, fields(sandbox_id = %live.id, team_id = %live.team, snapshot_id = Empty, kind = ?kind, memory = memory))]
    async fn capture(
        &self,
        live: &Live,
        kind: CaptureKind,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotId, ControlError> {
        let snapshot = SnapshotId::generate();
        Span::current().record("snapshot_id", display(snapshot));
        let timer = telemetry::capture_timer(kind);
        let captured = live.engine.capture(snapshot, memory, durability).await;
        if captured.is_ok() {
            timer.succeeded();
        }
        note_captured(live, snapshot, captured)
    }
}

fn note_captured(
    live: &Live,
    snapshot: SnapshotId,
    captured: Result<SnapshotInfo, EngineError>,
) -> Result<SnapshotId, ControlError> {
    let captured = captured.map_err(|error| capture_error(&live.id, &error))?;
    tracing::info!(
        sandbox_id = %live.id, %snapshot, memory = captured.memory, memory_bytes = captured.memory_bytes,
        stopped_us = u64::try_from(captured.stopped.as_micros()).unwrap_or(u64::MAX), "sandbox captured"
    );
    Ok(snapshot)
}

fn capture_error(id: &SandboxId, error: &EngineError) -> ControlError {
    tracing::warn!(sandbox_id = %id, %error, "a capture failed");
    match error {
        EngineError::NotFound => ControlError::SandboxNotFound(id.clone()),
        EngineError::Unsupported(_) => ControlError::Unsupported(error.to_string()),
        _ => ControlError::CaptureFailed(error.to_string()),
    }
}

/// How a sandbox with this record is started again from a captured state.
fn boot_again(
    record: &Sandbox,
    id: &SandboxId,
    pause: &Pause,
    restore_mode: RestoreMode,
) -> Result<Boot, ControlError> {
    let details = &record.details;
    Ok(Boot {
        id: id.clone(),
        team: record.team,
        template: record.template.clone(),
        layers: details.layers.clone(),
        config: details.config.clone(),
        cpu_count: details.cpu_count,
        memory_mib: details.memory_mib,
        disk_mib: details.disk_mib,
        // The creator's variables live in the agent's memory and nowhere else.
        env: (restore_mode == RestoreMode::Disk).then(|| details.config.env.clone()),
        egress: egress_policy(details.network.as_ref(), details.allow_internet_access)?,
        origin: Origin::Captured { snapshot: pause.snapshot, restore_mode, of: pause.captured_from.clone() },
        trusts: true,
    })
}

/// How the captured state of a pause can be brought back.
fn restore_mode_of(pause: &Pause, memory: bool) -> RestoreMode {
    if memory && pause.memory { RestoreMode::Memory } else { RestoreMode::Disk }
}
