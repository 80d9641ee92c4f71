//! Rolls a running sandbox back to one of its own snapshots, under the same id and with the same tokens and end. What it did since
//! the snapshot is lost. If the snapshot cannot be restored, the sandbox is left paused at it and can be resumed later.

use std::sync::Arc;

use catalog::TemplateRef;
use ids::{ExecutionId, SandboxId};
use logs::LogLevel;
use serde_json::Map;
use store::{BuildSnapshot, EventKind, Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use time::OffsetDateTime;

use super::launch::restore_mode_of;
use super::{
    Access, AnySandbox, EndReason, LaunchSpec, PausedSandbox, RunningSandbox, TimeLimit, begin_transition,
    kill_unregistered,
};
use crate::{Control, ControlError};

impl Control {
    /// Rolls a team's running sandbox back to one of its snapshots.
    ///
    /// # Errors
    /// There is no such sandbox or snapshot, or the snapshot was captured from another sandbox; then the sandbox is unchanged.
    /// If the restore fails, the sandbox is paused at the snapshot.
    pub async fn rollback(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        snapshot: &str,
    ) -> Result<Access, ControlError> {
        let running = match self.any_sandbox(team.id, id)? {
            AnySandbox::Running(running) => running,
            AnySandbox::Paused(_) => {
                return Err(ControlError::Conflict(format!(
                    "Sandbox '{id}' is paused and cannot be rolled back; resume it first"
                )));
            }
        };
        let build = self.catalog.resolve(team, &TemplateRef::parse(snapshot)?).await?.build;
        let target = build.snapshot.clone().filter(|target| target.sandbox == *id).ok_or_else(|| {
            ControlError::Invalid(format!(
                "'{snapshot}' is not a snapshot of sandbox '{id}'; to start another sandbox from it, create one"
            ))
        })?;
        let control = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _transition = begin_transition(&running.transition).await;
            if running.has_ended() {
                return Err(ControlError::SandboxNotFound(running.id.clone()));
            }
            control.rollback_locked(&running, &target).await
        });
        task.await
            .unwrap_or(Err(ControlError::Engine("failed to roll the sandbox back; see the server's log")))
    }

    /// Rolls back a running sandbox whose lock is held.
    async fn rollback_locked(
        self: &Arc<Self>,
        running: &Arc<RunningSandbox>,
        target: &BuildSnapshot,
    ) -> Result<Access, ControlError> {
        let pause = Pause {
            snapshot: target.id,
            owned: false,
            memory: target.memory,
            captured_from: target.sandbox.clone(),
            at: truncate_to_micros(OffsetDateTime::now_utc()),
            unresponsive: false,
        };
        let paused = Sandbox { state: SandboxState::Paused, pause: Some(pause.clone()), ..running.record() };
        let spec = LaunchSpec::from_snapshot(&paused, &running.id, &pause, restore_mode_of(&pause, true))?;
        // From here on the sandbox is paused at the snapshot for the store, whatever fails after this.
        self.store.put_sandbox(&paused).await?;
        self.registry.insert_paused(PausedSandbox::new(paused.clone(), Arc::clone(&running.transition)));
        running.mark_ended(&EndReason::RolledBack);
        let place = running.take_reservation();
        self.kill_in_engine(&running.engine, running.team, place).await.map_err(|error| {
            tracing::error!(sandbox_id = %running.id, %error, "failed to kill a sandbox for its rollback");
            ControlError::Engine(
                "failed to kill the sandbox for its rollback; it is paused at the snapshot, so resume it",
            )
        })?;
        let reservation = self.quota.reserve_unlimited(running.team);
        let sandbox = self.launcher.launch(&spec).await.inspect_err(|error| {
            tracing::warn!(sandbox_id = %running.id, %error, "failed to roll back; the sandbox is paused at the snapshot");
        })?;
        let record = Sandbox {
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            pause: None,
            ..paused
        };
        if let Err(error) = self.store.put_sandbox(&record).await {
            kill_unregistered(&*sandbox).await;
            return Err(error.into());
        }
        let time_limit = TimeLimit::until(record.end_at);
        let transition = Arc::clone(&running.transition);
        let successor = RunningSandbox::new(record, sandbox, time_limit, reservation, transition);
        let access = self.access_to(successor.info());
        let fields = [("snapshot", target.id.to_string())];
        self.log(&successor, LogLevel::Info, "sandbox rolled back", &fields);
        tracing::info!(
            sandbox_id = %running.id, team_id = %running.team, snapshot_id = %target.id, "sandbox rolled back"
        );
        let data = Map::from_iter([("rolled_back_to".to_owned(), target.id.to_string().into())]);
        self.events.record(EventKind::Updated, &*successor, data).await;
        self.go_live(successor);
        Ok(access)
    }
}
