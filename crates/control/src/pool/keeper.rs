//! Keeps the shelves as full as they should be: one sandbox at a time, behind whoever waits for a start.
//! What is too much, or of a build that is no longer meant, is ended. When memory gets scarce nothing waits any more.
//! A build that fails is tried again later, not at once.

use std::time::Duration;

use ids::{BuildId, SandboxId};
use store::{Build, BuildStatus};
use tokio::time::Instant;

use super::Ready;
use crate::sandboxes::create::boot_of;
use crate::sandboxes::launch::DiscardOnDrop;
use crate::{Control, ControlError};

/// After a sandbox of a build could not be made.
const RETRY: Duration = Duration::from_secs(30);
/// No sandboxes wait for so long after memory was scarce.
const AFTER_SCARCITY: Duration = Duration::from_secs(60);

/// What to do next.
enum Next {
    Make(BuildId),
    End(Vec<Ready>),
    /// Nothing until then, or until something changes.
    Wait(Option<Instant>),
}

impl Control {
    /// Keeps sandboxes waiting until the server goes down. What it has begun by then is finished.
    pub(crate) async fn keep_pool(&self) {
        let mut rest_until: Option<Instant> = None;
        while !self.closing.is_cancelled() {
            let now = Instant::now();
            let next = match rest_until.filter(|until| *until > now) {
                Some(until) => Next::Wait(Some(until)),
                None => self.next_for_pool(now),
            };
            match next {
                Next::End(surplus) => end(surplus).await,
                Next::Make(build) => self.add_to_pool(build).await,
                Next::Wait(until) => {
                    let holds_any = self.pool.shelves().values().any(|shelf| !shelf.ready.is_empty());
                    tokio::select! {
                        () = self.closing.cancelled() => {}
                        () = self.pool.changed.notified() => {}
                        () = sleep_until(until) => {}
                        () = self.engine.memory_pressure(), if holds_any => {
                            tracing::info!("memory is scarce: no sandboxes wait for their creators");
                            end(self.pool.drain()).await;
                            rest_until = Some(Instant::now() + AFTER_SCARCITY);
                        }
                    }
                }
            }
        }
    }

    fn next_for_pool(&self, now: Instant) -> Next {
        let mut shelves = self.pool.shelves();
        let (mut count, mut memory) = (0, 0);
        for shelf in shelves.values() {
            count += shelf.ready.len();
            memory += shelf.ready.iter().map(|ready| ready.memory).sum::<u64>();
        }
        let has_room = memory < self.config.pool_memory;
        let mut next: Option<Instant> = None;
        let mut soonest = |at: Option<Instant>| next = next.into_iter().chain(at).min();
        for (id, shelf) in shelves.iter_mut() {
            let build = self.catalog.build(*id).filter(|build| self.is_meant(build));
            let fixed = build.as_ref().and_then(|build| self.pool.fixed(&build.template));
            let wanted = match build {
                None => 0,
                Some(_) => fixed.unwrap_or_else(|| shelf.demand.wanted(now)),
            };
            let surplus = shelf.ready.len().saturating_sub(wanted);
            if surplus > 0 {
                return Next::End(shelf.ready.drain(..surplus).collect());
            }
            let may_add = has_room && (fixed.is_some() || count < self.config.pool_max);
            let may_try = shelf.retry_at.is_none_or(|at| at <= now);
            if shelf.ready.len() < wanted && may_add && may_try {
                return Next::Make(*id);
            }
            soonest(shelf.demand.changes_at(now));
            soonest(shelf.retry_at.filter(|at| *at > now));
        }
        // What is empty and not wanted is forgotten, figures too.
        shelves.retain(|id, shelf| {
            let known = self.catalog.build(*id);
            let fixed = known.as_ref().is_some_and(|build| self.pool.fixed(&build.template).is_some());
            known.is_some() && (fixed || !shelf.ready.is_empty() || shelf.demand.changes_at(now).is_some())
        });
        Next::Wait(next)
    }

    /// Whether creates can still come to this build by a tag.
    fn is_meant(&self, build: &Build) -> bool {
        build.status == BuildStatus::Ready
            && self.catalog.ready_assignments(&build.template).iter().rev().any(|info| {
                let tag = &info.assignment.tag;
                let meant = self.catalog.tagged(&build.template, tag);
                meant.is_some_and(|meant| meant.id == build.id)
            })
    }

    async fn add_to_pool(&self, id: BuildId) {
        let Some(build) = self.catalog.build(id) else { return };
        let made = self.make_ready(&build).await;
        // It may have been deleted or replaced in the middle, with the state that its sandboxes go on from.
        let is_meant = self.catalog.build(id).is_some_and(|build| self.is_meant(&build));
        let mut shelves = self.pool.shelves();
        let shelf = shelves.entry(id).or_default();
        match made {
            Ok(ready) => {
                shelf.retry_at = None;
                shelf.ready.push_back(ready);
            }
            Err(error) if !is_meant => {
                tracing::debug!(build_id = %id, %error, "no sandbox waits for a build that is not meant any more");
                shelf.retry_at = Some(Instant::now() + RETRY);
            }
            Err(error) => {
                tracing::warn!(build_id = %id, %error, "no sandbox could be made to wait");
                shelf.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    async fn make_ready(&self, build: &Build) -> Result<Ready, ControlError> {
        self.prepare(build).await?;
        let id = SandboxId::generate();
        let owner = self.catalog.by_id(&build.template).and_then(|template| template.team);
        let team = owner.unwrap_or_else(|| self.default_team().id);
        let boot = boot_of(&id, team, build, None, net::EgressPolicy::deny_all());
        let turn = self.starts.join()?.turn().await?;
        let sandbox = DiscardOnDrop::new(self.boot(&boot).await?, &self.tasks);
        drop(turn);
        self.bring_up(build, &id, sandbox.get()).await?;
        let memory = sandbox.get().stats().await.map_or(0, |stats| stats.memory_bytes);
        Ok(Ready { id, sandbox, memory })
    }

    /// Ends everything that waits.
    pub(crate) async fn empty_pool(&self) {
        end(self.pool.drain()).await;
    }
}

async fn end(all: Vec<Ready>) {
    for ready in all {
        let sandbox = ready.sandbox.keep();
        if let Err(error) = sandbox.kill().await {
            tracing::error!(sandbox_id = %ready.id, %error, "a waiting sandbox could not be ended cleanly");
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
