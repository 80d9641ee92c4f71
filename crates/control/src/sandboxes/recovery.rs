//! Takes over the sandboxes of an earlier server process, at the start of the server: each is adopted, recorded as ended, or killed
//! if its time is up; then the engine sweeps what belongs to none of them. A sandbox that is still being captured is adopted later.

use std::sync::Arc;
use std::time::Duration;

use engine::{EngineError, Sandbox as EngineSandbox};
use ids::SandboxId;
use store::{Sandbox, SandboxState, StoreError};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::egress::egress_policy;
use super::running::wait_for_exit;
use super::{EndReason, PausedSandbox, RunningSandbox, TimeLimit, TransitionLock};
use crate::{Control, envd};

/// Maximum number of adoptions at once.
const MAX_PARALLEL: usize = 16;
/// Maximum time until envd answers after a capture that was interrupted.
const MAX_ANSWER: Duration = Duration::from_secs(5);

/// What is left of a sandbox of the earlier process.
enum Found {
    Alive(Arc<RunningSandbox>),
    /// A capture of it still runs.
    BeingCaptured(Box<Sandbox>),
}

impl Control {
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        let records = self.store.open_sandboxes().await?;
        let recorded = records.len();
        let mut snapshots = self.catalog.snapshot_ids();
        let mut running = Vec::with_capacity(recorded);
        for record in records {
            match record.pause.as_ref().filter(|_| record.state == SandboxState::Paused) {
                Some(pause) => {
                    snapshots.push(pause.snapshot);
                    self.registry.insert_paused(PausedSandbox::new(record, Arc::default()));
                }
                None => running.push(record),
            }
        }
        let (mut adopted, mut late) = (Vec::new(), Vec::new());
        for found in self.adopt_all(running).await {
            match found {
                Found::Alive(running) => adopted.push(running),
                Found::BeingCaptured(record) => late.push(*record),
            }
        }
        let kept = adopted.iter().map(|running| &running.id).chain(late.iter().map(|record| &record.id));
        let kept: Vec<SandboxId> = kept.cloned().collect();
        let swept = match self.engine.sweep(&kept, &snapshots).await {
            Ok(swept) => {
                telemetry::sweep_finished(swept);
                swept
            }
            Err(error) => {
                tracing::error!(%error, "failed to remove everything that earlier sandboxes left over");
                0
            }
        };
        // Not before the sweep: an expired sandbox is paused at once, and the sweep would remove its new snapshot.
        for running in adopted {
            self.go_live(running);
        }
        for record in late {
            self.adopt_late(record);
        }
        if recorded > 0 || swept > 0 {
            tracing::info!(recorded, adopted = kept.len(), swept, "recovered from an earlier run");
        }
        Ok(())
    }

    /// Adopts sandboxes, some at a time.
    async fn adopt_all(self: &Arc<Self>, records: Vec<Sandbox>) -> Vec<Found> {
        let mut results = Vec::with_capacity(records.len());
        let mut adoptions = JoinSet::new();
        for record in records {
            if adoptions.len() >= MAX_PARALLEL {
                results.extend(adoptions.join_next().await);
            }
            let control = Arc::clone(self);
            adoptions.spawn(async move { control.adopt(record).await });
        }
        while let Some(result) = adoptions.join_next().await {
            results.push(result);
        }
        results.into_iter().filter_map(Result::ok).flatten().collect()
    }

    /// Adopts a sandbox; returns none if it has ended.
    async fn adopt(self: Arc<Self>, record: Sandbox) -> Option<Found> {
        match self.engine.adopt(&record.id).await {
            Err(EngineError::Capturing) => Some(Found::BeingCaptured(Box::new(record))),
            adopted => self.accept_adopted(adopted, record, Arc::default()).await.map(Found::Alive),
        }
    }

    /// Adopts a sandbox in the background that the earlier process was capturing. Until then it is registered as being paused:
    /// calls about it wait for the outcome, which takes a limited time.
    fn adopt_late(self: &Arc<Self>, record: Sandbox) {
        tracing::info!(sandbox_id = %record.id, "a capture that an earlier server process began still runs");
        let transition = TransitionLock::default();
        let pending = Sandbox { state: SandboxState::Paused, ..record.clone() };
        let pending = PausedSandbox::new(pending, Arc::clone(&transition));
        let held = Arc::clone(&transition).try_lock_owned().expect("no other task has this lock yet");
        self.registry.insert_paused(Arc::clone(&pending));
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            let adopted = tokio::select! {
                () = control.closing.cancelled() => return,
                adopted = control.engine.adopt_late(&record.id) => adopted,
            };
            if let Ok(sandbox) = &adopted {
                wait_for_answer(&**sandbox).await;
            }
            match control.accept_adopted(adopted, record, transition).await {
                Some(running) => control.go_live(running),
                None => control.registry.remove_paused(&pending),
            }
            drop(held);
        });
    }

    /// Returns the running sandbox if it was adopted and may live on; records its end otherwise.
    async fn accept_adopted(
        &self,
        adopted: Result<Arc<dyn EngineSandbox>, EngineError>,
        record: Sandbox,
        transition: TransitionLock,
    ) -> Option<Arc<RunningSandbox>> {
        let id = record.id.clone();
        let sandbox = match adopted {
            Ok(sandbox) if sandbox.exit().borrow().is_none() => sandbox,
            Ok(_) | Err(EngineError::NotFound) => {
                self.record_end(&id, &EndReason::Lost).await;
                return None;
            }
            Err(error) => {
                tracing::error!(sandbox_id = %id, %error, "failed to adopt a sandbox");
                self.record_end(&id, &EndReason::Lost).await;
                return None;
            }
        };
        if record.end_at <= OffsetDateTime::now_utc() && !record.details.lifecycle.auto_pause {
            if let Err(error) = self.kill_in_engine(&sandbox, record.team, None).await {
                tracing::error!(sandbox_id = %id, %error, "failed to kill an expired sandbox cleanly");
            }
            self.record_end(&id, &EndReason::Timeout).await;
            return None;
        }
        // The engine may have lost the rules.
        match egress_policy(
            record.team,
            record.details.network.as_ref(),
            record.details.allow_internet_access,
        ) {
            Ok(policy) => sandbox.set_egress(policy),
            Err(error) => {
                tracing::error!(sandbox_id = %id, %error, "stored network rules are invalid; denying all egress");
                sandbox.set_egress(net::EgressPolicy::deny_all());
            }
        }
        if tokio::time::timeout(MAX_ANSWER, self.launcher.renew_token(&*sandbox)).await.is_err() {
            tracing::warn!(sandbox_id = %id, "envd of an adopted sandbox does not answer");
        }
        let reservation = self.quota.reserve_unlimited(record.team);
        let time_limit = TimeLimit::until(record.end_at);
        Some(RunningSandbox::new(record, sandbox, time_limit, reservation, transition))
    }

    async fn record_end(&self, id: &SandboxId, reason: &EndReason) {
        self.events.record_killed_by_id(id, reason.event_reason()).await;
        if let Err(error) = self.store.finish_sandbox(id, OffsetDateTime::now_utc(), reason.as_str()).await {
            tracing::error!(sandbox_id = %id, %error, "failed to record the end of a sandbox");
        }
    }
}

/// Waits until envd answers, the sandbox has ended, or neither comes in time: an interrupted capture may kill the processes, which
/// shows only when they continue.
async fn wait_for_answer(sandbox: &dyn EngineSandbox) {
    let mut exit = sandbox.exit();
    let answered_or_ended = async {
        tokio::select! {
            answer = envd::health(sandbox) => answer.is_ok(),
            _ = wait_for_exit(&mut exit) => true,
        }
    };
    if !matches!(tokio::time::timeout(MAX_ANSWER, answered_or_ended).await, Ok(true)) {
        tracing::warn!(sandbox_id = %sandbox.id(), "envd does not answer after an interrupted capture");
    }
}
