//! [`PausedSandbox`]: a paused sandbox in memory, with its frozen processes if they are kept.

use std::sync::Arc;

use engine::Sandbox as EngineSandbox;
use parking_lot::Mutex;
use store::{Lifecycle, Sandbox};
use tokio::time::Instant;

use super::TransitionLock;

/// A paused sandbox. While it is being paused, its record has no `pause` yet.
#[derive(Debug)]
pub(crate) struct PausedSandbox {
    pub(crate) record: Sandbox,
    pub(crate) transition: TransitionLock,
    frozen: Mutex<Option<FrozenProcesses>>,
}

/// Frozen processes, kept so that a resume only thaws them.
struct FrozenProcesses {
    sandbox: Arc<dyn EngineSandbox>,
    until: Instant,
}

impl std::fmt::Debug for FrozenProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenProcesses").field("until", &self.until).finish_non_exhaustive()
    }
}

impl PausedSandbox {
    pub(crate) fn new(record: Sandbox, transition: TransitionLock) -> Arc<Self> {
        Arc::new(Self { record, transition, frozen: Mutex::default() })
    }

    /// Returns what its owner asked for when its time is up or traffic arrives.
    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.record.details.lifecycle
    }

    pub(super) fn keep_frozen(&self, sandbox: Arc<dyn EngineSandbox>, until: Instant) {
        *self.frozen.lock() = Some(FrozenProcesses { sandbox, until });
    }

    /// Takes the frozen processes if they are kept; the caller thaws or kills them.
    pub(super) fn take_frozen(&self) -> Option<Arc<dyn EngineSandbox>> {
        self.frozen.lock().take().map(|frozen| frozen.sandbox)
    }

    /// Returns until when frozen processes are kept, if they are.
    pub(super) fn frozen_until(&self) -> Option<Instant> {
        self.frozen.lock().as_ref().map(|frozen| frozen.until)
    }
}
