//! Warm starts of templates: a sandbox that has booted is captured before anybody uses it, and later ones go on from there.
//! Made by the first sandbox of a template with given limits, while others of it wait: a second boot would take longer than that.
//! A warm start that cannot be loaded is removed, and the next sandbox boots.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::StartSpec;
use sha2::{Digest, Sha256};

use crate::host::Host;

type Locks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct WarmStarts {
    dir: PathBuf,
    locks: Locks,
    blanks: Mutex<()>,
}

impl WarmStarts {
    pub(crate) fn open(dir: PathBuf) -> Self {
        Self { dir, locks: Locks::default(), blanks: Mutex::default() }
    }

    /// Where the notes on warm starts are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// For whoever makes the thing with this name: one at a time.
    pub(crate) fn lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for those.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }

    /// For whoever makes an empty disk or memory.
    pub(crate) fn lock_blanks(&self) -> MutexGuard<'_, ()> {
        self.blanks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names the warm start of what `spec` asks for: everything that a saved state depends on is in it.
pub(crate) fn warm_start_key(host: &Host, base: &str, spec: &StartSpec) -> String {
    let resources = &spec.resources;
    let boot = host.boot.file_name().unwrap_or_default().to_string_lossy();
    let parts = format!(
        "{base} {boot} {} {} {} {}",
        host.compatibility(),
        resources.cpu_count,
        resources.memory_mib,
        resources.disk_mib
    );
    Sha256::digest(parts).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}
