//! The sandboxes a server looks after.
//! Weak handles: a sandbox lives as long as its processes, not as long as somebody asks for it here.
//! Taking all of them is how a server leaves them to its successor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::SandboxId;

/// See the module's text.
#[derive(Debug)]
pub struct Running<T>(Mutex<HashMap<SandboxId, Weak<T>>>);

impl<T> Default for Running<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Running<T> {
    /// Adds one.
    pub fn add(&self, id: SandboxId, sandbox: &Arc<T>) {
        self.lock().insert(id, Arc::downgrade(sandbox));
    }

    /// Removes one that has ended.
    pub fn remove(&self, id: &SandboxId) {
        self.lock().remove(id);
    }

    /// Takes out all that are alive.
    pub fn take_all(&self) -> Vec<Arc<T>> {
        std::mem::take(&mut *self.lock()).values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
