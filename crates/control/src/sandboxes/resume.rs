//! Resumes a paused sandbox: thaws its frozen processes if they are kept, and restores its snapshot otherwise. After a failure the
//! sandbox is still paused. The snapshot is removed only once the store has written to the disk that the sandbox runs.

use std::sync::Arc;
use std::time::Duration;

use engine::{RestoreMode, Sandbox as EngineSandbox};
use ids::ExecutionId;
use logs::LogLevel;
use serde_json::Map;
use store::{EventKind, Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use telemetry::ResumePath;
use time::OffsetDateTime;
use tracing::field::Empty;
use tracing::{Instrument, Span, instrument};

use super::launch::restore_mode_of;
use super::{LaunchSpec, PausedSandbox, RunningSandbox, TimeLimit, begin_transition, kill_unregistered};
use crate::{Control, ControlError};

/// Maximum time until thawed processes answer; after it the snapshot is restored.
const MAX_THAW: Duration = Duration::from_secs(5);

impl Control {
    /// Resumes a paused sandbox in a task of its own. Returns none if its state changed before: then the caller looks again.
    pub(super) async fn resume_paused(
        self: &Arc<Self>,
        team: &Arc<Team>,
        paused: Arc<PausedSandbox>,
        timeout: i64,
        memory: bool,
    ) -> Result<Option<Arc<RunningSandbox>>, ControlError> {
        let (control, team) = (Arc::clone(self), Arc::clone(team));
        let resume = async move {
            let _transition = begin_transition(&paused.transition).await;
            let Some(pause) = paused.record.pause.as_ref().filter(|_| control.registry.holds(&paused)) else {
                return Ok(None);
            };
            let restore_mode = restore_mode_of(pause, memory);
            control.resume_locked(&team, &paused, pause, timeout, restore_mode).await.map(Some)
        };
        let task = self.tasks.spawn(resume.in_current_span());
        task.await.unwrap_or(Err(ControlError::Engine("failed to resume the sandbox; see the server's log")))
    }

    /// Resumes a paused sandbox whose lock is held.
    #[instrument(
        name = "resume", skip_all,
        fields(sandbox_id = %paused.record.id, team_id = %team.id, snapshot_id = %pause.snapshot, was_frozen = Empty)
    )]
    async fn resume_locked(
        self: &Arc<Self>,
        team: &Team,
        paused: &Arc<PausedSandbox>,
        pause: &Pause,
        timeout: i64,
        restore_mode: RestoreMode,
    ) -> Result<Arc<RunningSandbox>, ControlError> {
        let began = std::time::Instant::now();
        let id = &paused.record.id;
        let reservation = self.quota.reserve(team.id, team.limits.concurrent_sandboxes)?;
        let permit = self.launcher.queue.join()?.turn().await?;
        let mut timer = telemetry::resume_timer();
        let (sandbox, was_frozen) = self.thaw_or_restore(paused, pause, restore_mode).await?;
        Span::current().record("was_frozen", was_frozen);
        if was_frozen {
            timer.set_path(ResumePath::Frozen);
        }
        drop(permit);
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + time::Duration::seconds(timeout),
            pause: None,
            ..paused.record.clone()
        };
        self.record_resumed(&record, &*sandbox).await?;
        let time_limit = TimeLimit::until(record.end_at);
        let transition = Arc::clone(&paused.transition);
        let running = RunningSandbox::new(record, sandbox, time_limit, reservation, transition);
        let memory = restore_mode == RestoreMode::Memory;
        self.log(&running, LogLevel::Info, "sandbox resumed", &[("memory", memory.to_string())]);
        let data = Map::from_iter([("memory".to_owned(), memory.into())]);
        self.events.record(EventKind::Resumed, &*running, data).await;
        self.go_live(Arc::clone(&running));
        self.count_start(team.id);
        self.discard_after_resume(pause);
        tracing::info!(
            sandbox_id = %id, team_id = %team.id, was_frozen, memory,
            took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "sandbox resumed"
        );
        timer.succeeded();
        Ok(running)
    }

    /// Records that a sandbox runs again; kills it if that fails. The snapshot stays until this record is on the disk, so a power
    /// failure before leaves a paused sandbox and not a lost one.
    async fn record_resumed(
        &self,
        record: &Sandbox,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        let error = match self.store.put_sandbox_quickly(record).await {
            Ok(true) => return Ok(()),
            Ok(false) => ControlError::SandboxNotFound(record.id.clone()),
            Err(error) => error.into(),
        };
        kill_unregistered(sandbox).await;
        Err(error)
    }

    /// Removes the snapshot of an ended pause in the background: removing a large memory image takes time.
    fn discard_after_resume(self: &Arc<Self>, pause: &Pause) {
        if !pause.owned {
            return;
        }
        let (control, snapshot) = (Arc::clone(self), pause.snapshot);
        self.tasks.spawn(async move {
            match control.store.flush().await {
                Ok(()) => control.snapshots.discard(snapshot).await,
                // The next start sweeps it.
                Err(error) => {
                    tracing::error!(snapshot_id = %snapshot, %error, "failed to sync the store; keeping the snapshot");
                }
            }
        });
    }

    /// Returns the sandbox's processes running again, and whether they were only thawed.
    async fn thaw_or_restore(
        &self,
        paused: &PausedSandbox,
        pause: &Pause,
        restore_mode: RestoreMode,
    ) -> Result<(Arc<dyn EngineSandbox>, bool), ControlError> {
        let id = &paused.record.id;
        let spec = LaunchSpec::from_snapshot(&paused.record, id, pause, restore_mode)?;
        // Also for processes that are only thawed: an empty directory in the place of a volume would be a silent loss.
        self.volumes.check_present(&spec.volumes)?;
        if let Some(thawed) = self.thaw(paused, &spec).await? {
            return Ok((thawed, true));
        }
        let restored = self.launcher.launch(&spec).await.inspect_err(|error| {
            tracing::warn!(sandbox_id = %id, %error, "failed to resume a sandbox; it is still paused");
        })?;
        Ok((restored, false))
    }

    /// Thaws the sandbox's frozen processes and returns them if they are kept, memory is to be restored, and they answer. If it
    /// returns none, no frozen process is left.
    async fn thaw(
        &self,
        paused: &PausedSandbox,
        spec: &LaunchSpec,
    ) -> Result<Option<Arc<dyn EngineSandbox>>, ControlError> {
        let Some(sandbox) = paused.take_frozen() else { return Ok(None) };
        if spec.source.restored_from().is_some() && sandbox.exit().borrow().is_none() {
            let thawed = async {
                sandbox
                    .thaw()
                    .await
                    .map_err(|_| ControlError::Engine("failed to thaw the sandbox's processes"))?;
                sandbox.set_egress(spec.egress.clone());
                self.launcher.init_envd(spec, &*sandbox).await
            };
            match tokio::time::timeout(MAX_THAW, thawed).await {
                Ok(Ok(())) => return Ok(Some(sandbox)),
                failed => {
                    tracing::warn!(sandbox_id = %spec.id, ?failed, "thawed processes do not answer; restoring the snapshot");
                }
            }
        }
        // The restored sandbox will have the same id, so this one must be gone.
        sandbox.kill().await.map_err(|error| {
            tracing::error!(sandbox_id = %spec.id, %error, "failed to kill frozen processes");
            ControlError::Engine(
                "failed to kill the sandbox's frozen processes; it stays paused, so resume it again",
            )
        })?;
        Ok(None)
    }
}
