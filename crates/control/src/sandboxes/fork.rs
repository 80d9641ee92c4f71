//! Forks a sandbox: captures it once and starts any number of sandboxes from the snapshot, each with its own id, tokens and
//! randomness. The parent stops only for the capture. Each fork succeeds or fails by itself.
//! The snapshot is ephemeral: no record refers to it, and it is removed once all forks have started.

use std::sync::Arc;

use engine::{Durability, RestoreMode};
use ids::{ExecutionId, SandboxId};
use limits::QuotaReservation;
use logs::LogLevel;
use store::{Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{
    Access, AnySandbox, LaunchSpec, RunningSandbox, TimeLimit, begin_transition, check_timeout,
    kill_unregistered,
};
use crate::{Control, ControlError};

/// Maximum number of forks of one call.
const MAX_FORKS: i64 = 100;

/// How many forks to start, and how long they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkRequest {
    /// Time of each fork, seconds.
    pub timeout: i64,
    /// Number of forks.
    pub count: i64,
}

impl Control {
    /// Forks a team's running sandbox. Returns one result per fork, in no order.
    ///
    /// # Errors
    /// The request is invalid or the parent cannot be captured; then no fork was started.
    pub async fn fork(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        request: ForkRequest,
    ) -> Result<Vec<Result<Access, ControlError>>, ControlError> {
        let parent = match self.any_sandbox(team.id, id)? {
            AnySandbox::Running(parent) => parent,
            AnySandbox::Paused(_) => {
                return Err(ControlError::Conflict(format!(
                    "Sandbox '{id}' is paused and cannot be forked; resume it first"
                )));
            }
        };
        let limit = i64::from(team.limits.concurrent_sandboxes);
        if !(1..=MAX_FORKS).contains(&request.count) {
            return Err(ControlError::Invalid(format!("count must be from 1 to {MAX_FORKS}")));
        }
        if limit > 0 && request.count >= limit {
            return Err(ControlError::Invalid(format!(
                "count must be less than your team's limit of {limit} concurrent sandboxes"
            )));
        }
        check_timeout(team, request.timeout)?;
        self.check_memory_snapshots()?;
        let (control, team) = (Arc::clone(self), Arc::clone(team));
        let task = self
            .tasks
            .spawn(async move { control.fork_running(&team, &parent, request).await }.in_current_span());
        task.await.unwrap_or(Err(ControlError::Engine("failed to fork the sandbox; see the server's log")))
    }

    async fn fork_running(
        self: &Arc<Self>,
        team: &Arc<Team>,
        parent: &Arc<RunningSandbox>,
        request: ForkRequest,
    ) -> Result<Vec<Result<Access, ControlError>>, ControlError> {
        let (snapshot, record) = {
            let _transition = begin_transition(&parent.transition).await;
            if parent.has_ended() {
                return Err(ControlError::SandboxNotFound(parent.id.clone()));
            }
            (self.capture(parent, CaptureKind::Fork, true, Durability::Ephemeral).await?, parent.record())
        };
        let pause = Pause {
            snapshot,
            owned: false,
            memory: true,
            captured_from: parent.id.clone(),
            at: OffsetDateTime::now_utc(),
            unresponsive: false,
        };
        let mut starts = JoinSet::new();
        let mut results = Vec::new();
        for _ in 0..request.count {
            match self.quota.reserve(team.id, team.limits.concurrent_sandboxes) {
                Ok(reservation) => {
                    let (control, record, pause) = (Arc::clone(self), record.clone(), pause.clone());
                    starts.spawn(async move {
                        control.start_fork(&record, &pause, reservation, request.timeout).await
                    });
                }
                Err(error) => results.push(Err(error.into())),
            }
        }
        while let Some(started) = starts.join_next().await {
            results
                .push(started.unwrap_or(Err(ControlError::Engine(
                    "failed to fork the sandbox; see the server's log",
                ))));
        }
        self.snapshots.discard(snapshot).await;
        Ok(results)
    }

    /// Starts one fork of the sandbox with the record `parent`.
    async fn start_fork(
        self: &Arc<Self>,
        parent: &Sandbox,
        pause: &Pause,
        reservation: QuotaReservation,
        timeout: i64,
    ) -> Result<Access, ControlError> {
        let permit = self.launcher.queue.join()?.turn().await?;
        let id = SandboxId::generate();
        let spec = LaunchSpec::from_snapshot(parent, &id, pause, RestoreMode::Memory)?;
        let sandbox = self.launcher.launch(&spec).await.inspect_err(|error| {
            tracing::warn!(sandbox_id = %id, parent_sandbox_id = %parent.id, %error, "failed to start a fork");
        })?;
        drop(permit);
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            id: id.clone(),
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + time::Duration::seconds(timeout),
            ..parent.clone()
        };
        if let Err(error) = self.store.insert_sandbox(&record, None).await {
            kill_unregistered(&*sandbox).await;
            return Err(error.into());
        }
        let time_limit = TimeLimit::until(record.end_at);
        let running = RunningSandbox::new(record, sandbox, time_limit, reservation, Arc::default());
        let access = self.access_to(running.info());
        let fields = [("forked_from", parent.id.to_string())];
        self.log(&running, LogLevel::Info, "sandbox started", &fields);
        tracing::info!(
            sandbox_id = %id, team_id = %running.team, parent_sandbox_id = %parent.id, "sandbox forked"
        );
        self.events.record_forked(&*running, &parent.id).await;
        self.go_live(running);
        self.count_start(parent.team);
        Ok(access)
    }
}
