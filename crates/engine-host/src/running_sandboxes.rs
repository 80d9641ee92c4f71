//! [`RunningSandboxes`]: the sandboxes that an engine watches over.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use engine::SandboxId;
use parking_lot::Mutex;

/// The running sandboxes of an engine, by id. Holds weak references: a sandbox lives as long as its process is watched, not as long
/// as it is listed here.
#[derive(Debug)]
pub struct RunningSandboxes<T>(Mutex<HashMap<SandboxId, Weak<T>>>);

impl<T> Default for RunningSandboxes<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> RunningSandboxes<T> {
    /// Adds a sandbox.
    pub fn add(&self, id: SandboxId, sandbox: &Arc<T>) {
        self.0.lock().insert(id, Arc::downgrade(sandbox));
    }

    /// Removes a sandbox that has ended.
    pub fn remove(&self, id: &SandboxId) {
        self.0.lock().remove(id);
    }

    /// Removes all sandboxes and returns the ones that are still running, so that a later server can adopt them.
    pub fn take_all(&self) -> Vec<Arc<T>> {
        std::mem::take(&mut *self.0.lock()).values().filter_map(Weak::upgrade).collect()
    }
}
