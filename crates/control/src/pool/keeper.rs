//! Keeps the pool at its wanted size: starts one sandbox at a time, through the same queue as creates, and kills surplus sandboxes
//! and sandboxes of builds that no tag refers to any more. When memory gets scarce, all pre-started sandboxes are killed. After a failed
//! start, a build is tried again later.

use std::time::Duration;

use ids::{BuildId, SandboxId};
use store::{Build, BuildStatus};
use tokio::time::Instant;

use super::PreStarted;
use crate::sandboxes::{KillOnDrop, LaunchSpec};
use crate::{Control, ControlError};

/// Time until a build is tried again after a failed start.
const RETRY: Duration = Duration::from_secs(30);
/// How long the pool stays empty after memory was scarce.
const AFTER_PRESSURE: Duration = Duration::from_secs(60);

/// What to do next.
enum NextAction {
    Start(BuildId),
    Kill(Vec<PreStarted>),
    /// Wait until this time, or until something changes.
    Wait(Option<Instant>),
}

impl Control {
    /// Keeps the pool at its wanted size until the server shuts down. A start that has begun by then is finished.
    pub(crate) async fn keep_pool(&self) {
        let mut empty_until: Option<Instant> = None;
        while !self.closing.is_cancelled() {
            let now = Instant::now();
            let next = match empty_until.filter(|until| *until > now) {
                Some(until) => NextAction::Wait(Some(until)),
                None => self.next_pool_action(now),
            };
            match next {
                NextAction::Kill(surplus) => kill_all(surplus).await,
                NextAction::Start(build) => self.add_to_pool(build).await,
                NextAction::Wait(until) => {
                    let is_empty = self.pool.builds().values().all(|pool| pool.ready.is_empty());
                    tokio::select! {
                        () = self.closing.cancelled() => {}
                        () = self.pool.changed.notified() => {}
                        () = crate::sleep_until(until) => {}
                        () = self.engine.memory_pressure(), if !is_empty => {
                            tracing::info!("memory is scarce: emptying the pool of pre-started sandboxes");
                            kill_all(self.pool.drain()).await;
                            empty_until = Some(Instant::now() + AFTER_PRESSURE);
                        }
                    }
                }
            }
        }
    }

    fn next_pool_action(&self, now: Instant) -> NextAction {
        // Numbers that the operator has set need no create first: not after a restart, and not after a rebuild.
        let fixed = self.pool.fixed_templates();
        let fixed = fixed.iter().filter_map(|template| self.catalog.default_build(template));
        let fixed: Vec<BuildId> = fixed.map(|build| build.id).collect();
        let mut builds = self.pool.builds();
        for id in fixed {
            builds.entry(id).or_default();
        }
        let (mut count, mut memory) = (0, 0);
        for pool in builds.values() {
            count += pool.ready.len();
            memory += pool.ready.iter().map(|ready| ready.memory).sum::<u64>();
        }
        let has_memory = memory < self.config.pool_memory;
        let mut next: Option<Instant> = None;
        let mut wake_at = |at: Option<Instant>| next = next.into_iter().chain(at).min();
        for (id, pool) in builds.iter_mut() {
            let build = self.catalog.build(*id).filter(|build| self.is_in_use(build));
            let fixed = build.as_ref().and_then(|build| self.pool.fixed(&build.template));
            let wanted = match build {
                None => 0,
                Some(_) => fixed.unwrap_or_else(|| pool.demand.wanted(now)),
            };
            let surplus = pool.ready.len().saturating_sub(wanted);
            if surplus > 0 {
                return NextAction::Kill(pool.ready.drain(..surplus).collect());
            }
            let may_add = has_memory && (fixed.is_some() || count < self.config.pool_max);
            let may_try = pool.retry_at.is_none_or(|at| at <= now);
            if pool.ready.len() < wanted && may_add && may_try {
                return NextAction::Start(*id);
            }
            wake_at(pool.demand.changes_at(now));
            wake_at(pool.retry_at.filter(|at| *at > now));
        }
        // Builds without sandboxes and demand are removed, with their hit counts.
        builds.retain(|id, pool| {
            let build = self.catalog.build(*id);
            let fixed = build.as_ref().is_some_and(|build| self.pool.fixed(&build.template).is_some());
            build.is_some() && (fixed || !pool.ready.is_empty() || pool.demand.changes_at(now).is_some())
        });
        NextAction::Wait(next)
    }

    /// Returns whether creates can still start from this build.
    fn is_in_use(&self, build: &Build) -> bool {
        build.status == BuildStatus::Ready && self.catalog.is_tagged(build)
    }

    async fn add_to_pool(&self, id: BuildId) {
        let Some(build) = self.catalog.build(id) else { return };
        let started = self.pre_start(&build).await;
        // Meanwhile the build may have been deleted or replaced, together with its warm start.
        let is_in_use = self.catalog.build(id).is_some_and(|build| self.is_in_use(&build));
        let mut builds = self.pool.builds();
        let pool = builds.entry(id).or_default();
        match started {
            Ok(ready) => {
                pool.retry_at = None;
                pool.ready.push_back(ready);
            }
            Err(error) if !is_in_use => {
                tracing::debug!(build_id = %id, %error, "no sandbox was pre-started from a build that is not in use any more");
                pool.retry_at = Some(Instant::now() + RETRY);
            }
            Err(error) => {
                tracing::warn!(build_id = %id, %error, "failed to replenish the pool");
                pool.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Starts a sandbox without an owner.
    async fn pre_start(&self, build: &Build) -> Result<PreStarted, ControlError> {
        self.launcher.prepare(build).await?;
        let id = SandboxId::generate();
        let owner = self.catalog.template(&build.template).and_then(|template| template.team);
        let team = owner.unwrap_or_else(|| self.default_team().id);
        let spec = LaunchSpec::from_build(&id, team, build, None, net::EgressPolicy::deny_all());
        let permit = self.launcher.queue.join()?.turn().await?;
        let sandbox = KillOnDrop::new(self.launcher.launch(&spec).await?, &self.tasks);
        drop(permit);
        self.launcher.run_start_command(build, &id, sandbox.get()).await?;
        let memory = sandbox.get().stats().await.map_or(0, |stats| stats.memory_bytes);
        Ok(PreStarted { id, sandbox, memory })
    }

    /// Kills all pre-started sandboxes.
    pub(crate) async fn empty_pool(&self) {
        kill_all(self.pool.drain()).await;
    }
}

async fn kill_all(sandboxes: Vec<PreStarted>) {
    for PreStarted { id, sandbox, .. } in sandboxes {
        if let Err(error) = sandbox.keep().kill().await {
            tracing::error!(sandbox_id = %id, %error, "failed to kill a pre-started sandbox cleanly");
        }
    }
}
