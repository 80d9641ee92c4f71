//! Forking: one capture, then any number of sandboxes from it, each with an id, tokens and randomness of its own.
//! The source stands still only for the capture. Each fork succeeds or fails by itself.
//! The captured state goes when the last of them runs; no record names it, so it need not survive anything.

use std::sync::Arc;

use engine::{Durability, RestoreMode};
use ids::{ExecutionId, SandboxId};
use store::{Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::boot_again;
use crate::limits::Reservation;
use crate::sandboxes::create::check_timeout;
use crate::sandboxes::launch::discard;
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{Live, Timing};
use crate::{Access, Control, ControlError, LogLevel};

/// Most forks of one call.
const MOST: i64 = 100;

/// How many forks, and how long they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkRequest {
    /// Life of each, seconds.
    pub timeout: i64,
    /// Number of forks.
    pub count: i64,
}

impl Control {
    /// Forks a team's running sandbox. Answers one result for each fork, in no order.
    ///
    /// # Errors
    /// The source cannot be captured, or the request makes no sense: then nothing was started.
    pub async fn fork(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        request: ForkRequest,
    ) -> Result<Vec<Result<Access, ControlError>>, ControlError> {
        let live = match self.entry(team.id, id)? {
            Entry::Running(live) => live,
            Entry::Paused(_) => {
                return Err(ControlError::Conflict(format!(
                    "Sandbox '{id}' is paused and cannot be forked; resume it first"
                )));
            }
        };
        let limit = i64::from(team.limits.concurrent_sandboxes);
        if !(1..=MOST).contains(&request.count) {
            return Err(ControlError::Invalid(format!("count must be from 1 to {MOST}")));
        }
        if limit > 0 && request.count >= limit {
            return Err(ControlError::Invalid(format!(
                "count must be less than your team's limit of {limit} concurrent sandboxes"
            )));
        }
        check_timeout(team, request.timeout)?;
        self.check_memory_snapshots()?;
        let (control, team) = (Arc::clone(self), Arc::clone(team));
        let task =
            self.tasks.spawn(async move { control.fork_live(&team, &live, request).await }.in_current_span());
        task.await.unwrap_or(Err(ControlError::Engine("forked")))
    }

    async fn fork_live(
        self: &Arc<Self>,
        team: &Arc<Team>,
        live: &Arc<Live>,
        request: ForkRequest,
    ) -> Result<Vec<Result<Access, ControlError>>, ControlError> {
        let (snapshot, origin) = {
            let _changing = Self::turn(&live.transition).await;
            if live.has_ended() {
                return Err(ControlError::SandboxNotFound(live.id.clone()));
            }
            (self.capture(live, CaptureKind::Fork, true, Durability::Ephemeral).await?, live.record())
        };
        let state = Pause {
            snapshot,
            owned: false,
            memory: true,
            captured_from: live.id.clone(),
            at: OffsetDateTime::now_utc(),
            unresponsive: false,
        };
        let mut starts = JoinSet::new();
        let mut results = Vec::new();
        for _ in 0..request.count {
            let reservation = self.places.reserve(team.id, team.limits.concurrent_sandboxes);
            match reservation {
                Ok(place) => {
                    let (control, origin, state) = (Arc::clone(self), origin.clone(), state.clone());
                    starts.spawn(
                        async move { control.start_fork(&origin, &state, place, request.timeout).await },
                    );
                }
                Err(error) => results.push(Err(error)),
            }
        }
        while let Some(started) = starts.join_next().await {
            results.push(started.unwrap_or(Err(ControlError::Engine("forked"))));
        }
        self.discard_state(snapshot).await;
        Ok(results)
    }

    async fn start_fork(
        self: &Arc<Self>,
        origin: &Sandbox,
        state: &Pause,
        reservation: Reservation,
        timeout: i64,
    ) -> Result<Access, ControlError> {
        let turn = self.starts.join()?.turn().await?;
        let id = SandboxId::generate();
        let sandbox =
            self.boot(&boot_again(origin, &id, state, RestoreMode::Memory)?).await.inspect_err(|error| {
                tracing::warn!(sandbox_id = %id, source = %origin.id, %error, "a fork failed");
            })?;
        drop(turn);
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            id: id.clone(),
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + time::Duration::seconds(timeout),
            ..origin.clone()
        };
        if let Err(error) = self.store.insert_sandbox(&record, None).await {
            discard(&*sandbox).await;
            return Err(error.into());
        }
        let timing = Timing::until(record.end_at);
        let live = Live::new(record, sandbox, timing, reservation, Arc::default());
        let access = self.access(&live);
        self.log(&live, LogLevel::Info, "sandbox started", &[("forked_from", origin.id.to_string())]);
        tracing::info!(sandbox_id = %id, team_id = %live.team, source = %origin.id, "sandbox forked");
        self.record_forked(&live, &origin.id).await;
        self.go_live(live);
        self.note_start(origin.team);
        Ok(access)
    }
}
