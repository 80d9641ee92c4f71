//! The first thing after a start: what of the former server's sandboxes is still alive?
//! Sandboxes are adopted, recorded as ended, or ended now if their time ran out meanwhile;
//! then the engine removes whatever belongs to none of them. One that is still being captured is adopted later.

use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use ids::SandboxId;
use store::{Sandbox, SandboxState, StoreError};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::sandboxes::Paused;
use crate::sandboxes::egress::egress_policy;
use crate::sandboxes::running::{EndReason, Live, Timing, Transition, wait_for_exit};
use crate::{Control, envd};

/// Adoptions at once.
const PARALLEL: usize = 16;

/// How long an agent may take to answer after a capture that was cut off.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What is there of a former server's sandbox.
enum Found {
    Alive(Arc<Live>),
    /// It is still being captured.
    Captured(Box<Sandbox>),
}

impl Control {
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        let records = self.store.open_sandboxes().await?;
        let found = records.len();
        let mut results = Vec::with_capacity(found);
        let mut adoptions = JoinSet::new();
        let mut states = self.catalog.captured_states();
        for record in records {
            if let Some(pause) = record.pause.as_ref().filter(|_| record.state == SandboxState::Paused) {
                states.push(pause.snapshot);
                self.table.insert_paused(Paused::new(record, Arc::default()));
                continue;
            }
            if adoptions.len() >= PARALLEL {
                results.extend(adoptions.join_next().await);
            }
            let control = Arc::clone(self);
            adoptions.spawn(async move { control.adopt(record).await });
        }
        while let Some(one) = adoptions.join_next().await {
            results.push(one);
        }
        let (mut adopted, mut late) = (Vec::new(), Vec::new());
        for result in results.into_iter().filter_map(Result::ok).flatten() {
            match result {
                Found::Alive(live) => adopted.push(live),
                Found::Captured(record) => late.push(*record),
            }
        }
        let kept = adopted.iter().map(|live| &live.id).chain(late.iter().map(|record| &record.id));
        let kept: Vec<SandboxId> = kept.cloned().collect();
        let swept = match self.engine.sweep(&kept, &states).await {
            Ok(swept) => {
                telemetry::sweep_finished(swept);
                swept
            }
            Err(error) => {
                tracing::error!(%error, "remains of earlier sandboxes could not all be removed");
                0
            }
        };
        // Not before: one whose time ran out meanwhile is paused at once, and the sweep would take that for remains.
        for live in adopted {
            self.go_live(live);
        }
        for record in late {
            self.adopt_late(record);
        }
        if found > 0 || swept > 0 {
            tracing::info!(found, adopted = kept.len(), swept, "recovered from an earlier run");
        }
        Ok(())
    }

    /// Returns what is there of the sandbox, if it lives on.
    async fn adopt(self: Arc<Self>, record: Sandbox) -> Option<Found> {
        match self.engine.adopt(&record.id).await {
            Err(EngineError::Capturing) => Some(Found::Captured(Box::new(record))),
            answer => self.settle_adopted(answer, record, Arc::default()).await.map(Found::Alive),
        }
    }

    /// Takes over a sandbox that the former server was capturing, without keeping anybody waiting who wants something else. Until
    /// then it is one that is being paused: whoever asks for it waits for what comes of that, which takes a limited time.
    fn adopt_late(self: &Arc<Self>, record: Sandbox) {
        tracing::info!(sandbox_id = %record.id, "a capture that an earlier server began is still under way");
        let transition = Transition::default();
        let pending = Sandbox { state: SandboxState::Paused, ..record.clone() };
        let pending = Paused::new(pending, Arc::clone(&transition));
        let changing = Arc::clone(&transition).try_lock_owned().expect("nobody else knows this lock yet");
        self.table.insert_paused(Arc::clone(&pending));
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            let answer = tokio::select! {
                () = control.closing.cancelled() => return,
                answer = control.engine.adopt_late(&record.id) => answer,
            };
            if let Ok(sandbox) = &answer {
                control.outlives_capture(&**sandbox).await;
            }
            match control.settle_adopted(answer, record, transition).await {
                Some(live) => control.go_live(live),
                None => control.table.remove_paused(&pending),
            }
            drop(changing);
        });
    }

    /// A dump that was cut off may take the processes with it, which shows when they go on: waits until the agent answers, the sandbox
    /// has ended, or neither comes in time.
    async fn outlives_capture(&self, sandbox: &dyn engine::Sandbox) {
        let mut exit = sandbox.exit();
        let first = async {
            tokio::select! {
                answer = envd::health(sandbox) => answer.is_ok(),
                _ = wait_for_exit(&mut exit) => true,
            }
        };
        if !matches!(tokio::time::timeout(SIGN_OF_LIFE, first).await, Ok(true)) {
            tracing::warn!(sandbox_id = %sandbox.id(), "the agent does not answer after a capture that was cut off");
        }
    }

    /// Returns the sandbox if it lives on and may.
    async fn settle_adopted(
        &self,
        adopted: Result<Arc<dyn engine::Sandbox>, EngineError>,
        record: Sandbox,
        transition: Transition,
    ) -> Option<Arc<Live>> {
        let id = record.id.clone();
        let sandbox = match adopted {
            Ok(sandbox) if sandbox.exit().borrow().is_none() => sandbox,
            Ok(_) => {
                self.record_end(&id, &EndReason::Lost).await;
                return None;
            }
            Err(error) => {
                if !matches!(error, EngineError::NotFound) {
                    tracing::error!(sandbox_id = %id, %error, "a sandbox could not be adopted");
                }
                self.record_end(&id, &EndReason::Lost).await;
                return None;
            }
        };
        if record.end_at <= OffsetDateTime::now_utc() && !record.details.lifecycle.auto_pause {
            if let Err(error) = sandbox.kill().await {
                tracing::error!(sandbox_id = %id, %error, "an expired sandbox could not be ended cleanly");
            }
            self.record_end(&id, &EndReason::Timeout).await;
            return None;
        }
        // The engine may have kept its rules or not; these are the ones its owner was promised.
        match egress_policy(record.details.network.as_ref(), record.details.allow_internet_access) {
            Ok(policy) => sandbox.set_egress(policy),
            Err(error) => {
                tracing::error!(sandbox_id = %id, %error, "stored network rules make no sense: nothing is let out");
                sandbox.set_egress(net::EgressPolicy::deny_all());
            }
        }
        let reservation = self.places.reserve(record.team, 0).ok()?;
        let timing = Timing::until(record.end_at);
        Some(Live::new(record, sandbox, timing, reservation, transition))
    }

    async fn record_end(&self, id: &SandboxId, reason: &EndReason) {
        self.record_killed_by_id(id, reason).await;
        if let Err(error) = self.store.finish_sandbox(id, OffsetDateTime::now_utc(), reason.as_str()).await {
            tracing::error!(sandbox_id = %id, %error, "the end of a sandbox was not recorded");
        }
    }
}
