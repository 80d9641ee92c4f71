//! Sandboxes that wait for their creator: started ahead from templates in use, so that a create only has to introduce itself.
//! One is handed out once. It has an id, a token and randomness of its own from the start, and no way out until it has an owner;
//! environment, clock, team and network rules come with the claim. Nobody knows of it before: it is in no table and no record.

mod demand;
mod keeper;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::Sandbox as EngineSandbox;
use ids::{BuildId, SandboxId, TemplateId};
use store::Build;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::demand::Demand;
use crate::sandboxes::launch::{Boot, DiscardOnDrop};
use crate::{Control, ControlError};

/// A sandbox that waits.
struct Ready {
    id: SandboxId,
    sandbox: DiscardOnDrop,
    /// Bytes it used when it had just been made.
    memory: u64,
}

impl Ready {
    fn is_alive(&self) -> bool {
        self.sandbox.get().exit().borrow().is_none()
    }
}

/// What waits for one build.
#[derive(Default)]
struct Shelf {
    ready: VecDeque<Ready>,
    demand: Demand,
    hits: u64,
    misses: u64,
    /// Not before this, because the last attempt failed.
    retry_at: Option<Instant>,
}

/// All that wait.
#[derive(Default)]
pub(crate) struct Pool {
    shelves: Mutex<HashMap<BuildId, Shelf>>,
    /// What the operator wants of a template whatever the demand.
    fixed: Mutex<HashMap<TemplateId, usize>>,
    /// Something was taken, or is wanted.
    changed: Notify,
}

/// A build's place in the pool, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolReport {
    /// The template.
    pub template: TemplateId,
    /// Its names.
    pub names: Vec<String>,
    /// The build.
    pub build: BuildId,
    /// Sandboxes that wait.
    pub ready: usize,
    /// How many should.
    pub wanted: usize,
    /// How many the operator wants; none leaves it to the demand.
    pub fixed: Option<usize>,
    /// Creates that took one.
    pub hits: u64,
    /// Creates that found none.
    pub misses: u64,
    /// Bytes of memory they use together.
    pub memory: u64,
}

impl Pool {
    /// A pool with what the operator wished for earlier.
    pub(crate) fn open(file: Option<&Path>) -> Self {
        let text = file.and_then(|path| std::fs::read(path).ok());
        let wishes: HashMap<String, usize> =
            text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let fixed = wishes.into_iter().filter_map(|(id, count)| Some((id.parse().ok()?, count)));
        Self { fixed: Mutex::new(fixed.collect()), ..Self::default() }
    }

    fn shelves(&self) -> MutexGuard<'_, HashMap<BuildId, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fixed(&self, template: &TemplateId) -> Option<usize> {
        self.fixed.lock().unwrap_or_else(PoisonError::into_inner).get(template).copied()
    }

    /// Takes one that is alive, and notes that one was asked for.
    fn take(&self, build: BuildId) -> Option<Ready> {
        let mut dead = Vec::new();
        let mut shelves = self.shelves();
        let shelf = shelves.entry(build).or_default();
        shelf.demand.note(Instant::now());
        let taken = loop {
            match shelf.ready.pop_front() {
                Some(ready) if !ready.is_alive() => dead.push(ready),
                taken => break taken,
            }
        };
        telemetry::pool_claimed(taken.is_some());
        match taken {
            Some(_) => shelf.hits += 1,
            None => shelf.misses += 1,
        }
        drop(shelves);
        self.changed.notify_one();
        taken
    }

    /// Takes everything out.
    fn drain(&self) -> Vec<Ready> {
        self.shelves().values_mut().flat_map(|shelf| shelf.ready.drain(..)).collect()
    }
}

/// A waiting sandbox that now has an owner.
pub(crate) struct Claimed {
    pub(crate) id: SandboxId,
    pub(crate) sandbox: Arc<dyn EngineSandbox>,
}

impl Control {
    /// A waiting sandbox of this build made the caller's, if there is one. `boot` says whose it is and what it runs with;
    /// its id is not used.
    pub(crate) async fn claim(&self, build: &Build, boot: &Boot) -> Option<Claimed> {
        if self.config.pool_max == 0 && self.pool.fixed(&build.template).is_none() {
            return None;
        }
        let Ready { id, sandbox, .. } = self.pool.take(build.id)?;
        let own = Boot { id: id.clone(), ..boot.clone() };
        sandbox.get().set_egress(own.egress.clone());
        let introduced =
            tokio::time::timeout(self.config.start_timeout, self.reintroduce(&own, sandbox.get()));
        match introduced.await {
            Ok(Ok(())) => Some(Claimed { id, sandbox: sandbox.keep() }),
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = %id, %error, "a waiting sandbox was no good");
                None
            }
            Err(_) => {
                tracing::warn!(sandbox_id = %id, "a waiting sandbox did not answer");
                None
            }
        }
    }

    /// What waits and what should, by template.
    #[must_use]
    pub fn pool(&self) -> Vec<PoolReport> {
        let now = Instant::now();
        let shelves = self.pool.shelves();
        let mut reports: Vec<PoolReport> = shelves
            .iter()
            .filter_map(|(build, shelf)| {
                let build = self.catalog.build(*build)?;
                let template = self.catalog.by_id(&build.template)?;
                let fixed = self.pool.fixed(&template.id);
                Some(PoolReport {
                    names: template.names.iter().map(ToString::to_string).collect(),
                    template: template.id,
                    build: build.id,
                    ready: shelf.ready.len(),
                    wanted: fixed.unwrap_or_else(|| shelf.demand.wanted(now)),
                    fixed,
                    hits: shelf.hits,
                    misses: shelf.misses,
                    memory: shelf.ready.iter().map(|ready| ready.memory).sum(),
                })
            })
            .collect();
        reports.sort_by(|a, b| (&a.names, a.build).cmp(&(&b.names, b.build)));
        reports
    }

    /// Has `count` sandboxes of everybody's or a team's template wait, whatever the demand; none leaves it to the demand.
    /// Kept across restarts.
    ///
    /// # Errors
    /// There is no such ready template, or the setting cannot be kept.
    pub async fn set_pool(&self, text: &str, count: Option<usize>) -> Result<(), ControlError> {
        const MOST: usize = 1000;
        if count.is_some_and(|count| count > MOST) {
            return Err(ControlError::Invalid(format!("at most {MOST} sandboxes of a template can wait")));
        }
        let reference = crate::TemplateRef::parse(text)?;
        let build = self.resolve(&self.default_team(), &reference).await?.build;
        let kept = {
            let mut fixed = self.pool.fixed.lock().unwrap_or_else(PoisonError::into_inner);
            match count {
                Some(count) => fixed.insert(build.template.clone(), count),
                None => fixed.remove(&build.template),
            };
            fixed.iter().map(|(id, count)| (id.to_string(), *count)).collect::<HashMap<_, _>>()
        };
        self.pool.shelves().entry(build.id).or_default();
        if let Some(path) = self.config.pool_file.clone() {
            let text = serde_json::to_vec(&kept).expect("names and numbers serialise");
            let new = path.with_extension("new");
            let written = async {
                tokio::fs::write(&new, text).await?;
                tokio::fs::rename(&new, &path).await
            };
            written.await.map_err(|error| {
                tracing::error!(%error, "the pool's settings could not be kept");
                ControlError::Engine("remembered in the pool's settings")
            })?;
        }
        self.pool.changed.notify_one();
        Ok(())
    }
}
