//! The first thing after a start: what of the former server's sandboxes is still alive?
//! Sandboxes are adopted, recorded as ended, or ended now if their time ran out meanwhile;
//! then the engine removes whatever belongs to none of them.

use std::sync::Arc;

use engine::EngineError;
use ids::SandboxId;
use store::{Sandbox, SandboxState, StoreError};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::Control;
use crate::lifecycle::Paused;
use crate::live::{EndReason, Live, Timing};
use crate::network::egress_policy;

/// Adoptions at once.
const PARALLEL: usize = 16;

impl Control {
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        let records = self.store.open_sandboxes().await?;
        let found = records.len();
        let mut adopted: Vec<_> = Vec::with_capacity(found);
        let mut adoptions = JoinSet::new();
        let mut states = self.catalog.captured_states();
        for record in records {
            if let Some(pause) = record.pause.as_ref().filter(|_| record.state == SandboxState::Paused) {
                states.push(pause.snapshot);
                self.table.insert_paused(Paused::new(record, Arc::default()));
                continue;
            }
            if adoptions.len() >= PARALLEL {
                adopted.extend(adoptions.join_next().await.and_then(Result::ok).flatten());
            }
            let control = Arc::clone(self);
            adoptions.spawn(async move { control.adopt(record).await });
        }
        while let Some(one) = adoptions.join_next().await {
            adopted.extend(one.ok().flatten());
        }
        let kept: Vec<SandboxId> = adopted.iter().map(|live| live.id.clone()).collect();
        let swept = match self.engine.sweep(&kept, &states).await {
            Ok(swept) => swept,
            Err(error) => {
                tracing::error!(%error, "remains of earlier sandboxes could not all be removed");
                0
            }
        };
        // Not before: one whose time ran out meanwhile is paused at once, and the sweep would take that for remains.
        for live in adopted {
            self.go_live(live);
        }
        if found > 0 || swept > 0 {
            tracing::info!(found, adopted = kept.len(), swept, "recovered from an earlier run");
        }
        Ok(())
    }

    /// Answers the sandbox if it lives on.
    async fn adopt(self: Arc<Self>, record: Sandbox) -> Option<Arc<Live>> {
        let id = record.id.clone();
        let sandbox = match self.engine.adopt(&id).await {
            Ok(sandbox) => sandbox,
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
        Some(Live::new(record, sandbox, timing, reservation, Arc::default()))
    }

    async fn record_end(&self, id: &SandboxId, reason: &EndReason) {
        self.record_killed_by_id(id, reason).await;
        if let Err(error) = self.store.finish_sandbox(id, OffsetDateTime::now_utc(), reason.as_str()).await {
            tracing::error!(sandbox_id = %id, %error, "the end of a sandbox was not recorded");
        }
    }
}
