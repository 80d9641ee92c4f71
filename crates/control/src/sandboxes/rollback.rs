//! Rolling back: a running sandbox is put back to one of its own snapshots, under the same id and with the same tokens.
//! What it did since is gone. Its time goes on as it was.
//! If the snapshot cannot be brought back the sandbox is left paused at it, to be resumed later.

use std::sync::Arc;

use ids::{ExecutionId, SandboxId};
use serde_json::Map;
use store::{BuildSnapshot, EventKind, Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use time::OffsetDateTime;

use super::{Paused, boot_again, restore_mode_of};
use crate::sandboxes::launch::discard;
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{EndReason, Live, Timing};
use crate::{Access, Control, ControlError, LogLevel, TemplateRef};

impl Control {
    /// Puts a team's running sandbox back to one of its snapshots.
    ///
    /// # Errors
    /// No such sandbox or snapshot, or the snapshot is not one of this sandbox; then it runs on untouched. An error
    /// of the restore leaves it paused at the snapshot.
    pub async fn rollback(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        snapshot: &str,
    ) -> Result<Access, ControlError> {
        let live = match self.entry(team.id, id)? {
            Entry::Running(live) => live,
            Entry::Paused(_) => {
                return Err(ControlError::Conflict(format!(
                    "Sandbox '{id}' is paused and cannot be rolled back; resume it first"
                )));
            }
        };
        let build = self.resolve(team, &TemplateRef::parse(snapshot)?).await?.build;
        let state = build.snapshot.clone().filter(|state| state.sandbox == *id).ok_or_else(|| {
            ControlError::Invalid(format!(
                "'{snapshot}' is not a snapshot of sandbox '{id}'; to start another sandbox from it, create one"
            ))
        })?;
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _changing = Self::turn(&live.transition).await;
            if live.has_ended() {
                return Err(ControlError::SandboxNotFound(live.id.clone()));
            }
            control.rollback_held(&live, &state).await
        });
        task.await.unwrap_or(Err(ControlError::Engine("rolled back")))
    }

    async fn rollback_held(
        self: &Arc<Self>,
        live: &Arc<Live>,
        state: &BuildSnapshot,
    ) -> Result<Access, ControlError> {
        let pause = Pause {
            snapshot: state.id,
            owned: false,
            memory: state.memory,
            captured_from: state.sandbox.clone(),
            at: truncate_to_micros(OffsetDateTime::now_utc()),
            unresponsive: false,
        };
        let paused = Sandbox { state: SandboxState::Paused, pause: Some(pause.clone()), ..live.record() };
        let boot = boot_again(&paused, &live.id, &pause, restore_mode_of(&pause, true))?;
        // From here on the store has it paused at the snapshot: whatever happens next, that is the truth.
        self.store.put_sandbox(&paused).await?;
        self.table.insert_paused(Paused::new(paused.clone(), Arc::clone(&live.transition)));
        live.mark_ended(&EndReason::RolledBack);
        live.engine.kill().await.map_err(|error| {
            tracing::error!(sandbox_id = %live.id, %error, "a sandbox could not be ended for its rollback");
            ControlError::Engine("rolled back; it is paused at the snapshot")
        })?;
        let reservation = self.places.reserve(live.team, 0)?;
        let sandbox = self.boot(&boot).await.inspect_err(|error| {
            tracing::warn!(sandbox_id = %live.id, %error, "a rollback failed; the sandbox is paused at the snapshot");
        })?;
        let record = Sandbox {
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            pause: None,
            ..paused
        };
        if let Err(error) = self.store.put_sandbox(&record).await {
            discard(&*sandbox).await;
            return Err(error.into());
        }
        let timing = Timing::until(record.end_at);
        let successor = Live::new(record, sandbox, timing, reservation, Arc::clone(&live.transition));
        let access = self.access(&successor);
        self.log(&successor, LogLevel::Info, "sandbox rolled back", &[("snapshot", state.id.to_string())]);
        tracing::info!(sandbox_id = %live.id, team_id = %live.team, snapshot = %state.id, "sandbox rolled back");
        let particulars = Map::from_iter([("rolled_back_to".to_owned(), state.id.to_string().into())]);
        self.record_event(EventKind::Updated, &*successor, particulars).await;
        self.go_live(successor);
        Ok(access)
    }
}
