//! A paused sandbox, and the cache of those whose frozen processes are still there.
//! The captured state is what counts: the cache only makes a resume that comes soon instant, and may go at any time.
//! It goes when its time is up, when there are too many, and when memory gets scarce.

use std::sync::{Arc, Mutex, PoisonError};

use engine::Sandbox as EngineSandbox;
use store::{Lifecycle, Sandbox};
use tokio::time::Instant;

use crate::Control;
use crate::sandboxes::running::Transition;

/// A paused sandbox. While it is being paused its record has no `pause` yet.
#[derive(Debug)]
pub(crate) struct Paused {
    pub(crate) record: Sandbox,
    pub(crate) transition: Transition,
    hot: Mutex<Option<Hot>>,
}

/// Frozen processes.
struct Hot {
    sandbox: Arc<dyn EngineSandbox>,
    until: Instant,
}

impl std::fmt::Debug for Hot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hot").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Paused {
    pub(crate) fn new(record: Sandbox, transition: Transition) -> Arc<Self> {
        Arc::new(Self { record, transition, hot: Mutex::default() })
    }

    /// What happens to it when somebody asks for its ports.
    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.record.details.lifecycle
    }

    pub(super) fn keep_hot(&self, sandbox: Arc<dyn EngineSandbox>, until: Instant) {
        *self.hot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Hot { sandbox, until });
    }

    /// Takes the frozen processes, if they are still there: whoever has them decides about them.
    pub(crate) fn take_hot(&self) -> Option<Arc<dyn EngineSandbox>> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner).take().map(|hot| hot.sandbox)
    }

    fn hot_until(&self) -> Option<Instant> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|hot| hot.until)
    }
}

impl Control {
    /// Lets go of frozen processes that are no longer worth their memory.
    pub(crate) async fn keep_evicting(self: Arc<Self>) {
        loop {
            let mut hot: Vec<_> = self
                .table
                .all_paused()
                .into_iter()
                .filter_map(|paused| Some((paused.hot_until()?, paused)))
                .collect();
            hot.sort_by_key(|(until, _)| *until);
            let surplus = hot.len().saturating_sub(self.config.keep_frozen_max);
            let due = hot.iter().take_while(|(until, _)| *until <= Instant::now()).count();
            for (_, paused) in hot.drain(..surplus.max(due)) {
                self.evict(paused);
            }
            let next = hot.first().map(|(until, _)| *until);
            tokio::select! {
                () = self.cached.notified() => {}
                () = sleep_until(next) => {}
                () = self.engine.memory_pressure(), if !hot.is_empty() => {
                    tracing::info!(kept = hot.len(), "memory is scarce: paused sandboxes are no longer kept in it");
                    for (_, paused) in hot {
                        self.evict(paused);
                    }
                }
            }
        }
    }

    fn evict(&self, paused: Arc<Paused>) {
        self.tasks.spawn(async move {
            // Whoever resumes it meanwhile waits: what is restored has the same id, and the files of that.
            let _changing = Self::turn(&paused.transition).await;
            let Some(sandbox) = paused.take_hot() else { return };
            if let Err(error) = sandbox.kill().await {
                tracing::error!(sandbox_id = %paused.record.id, %error, "frozen processes could not be ended cleanly");
            }
        });
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
