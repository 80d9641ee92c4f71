//! Boot snapshots: memory snapshots of freshly booted guests, one for each template and set of limits,
//! which later sandboxes are restored from.
//!
//! The first sandbox of a template makes the boot snapshot while other creates of the same template
//! wait, because booting a second guest would take longer. A boot snapshot that cannot be restored is
//! removed, and the next sandbox boots again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::StartSpec;
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};

use crate::host::Host;

type Locks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// Directory of boot snapshots, and locks so that each is created once and then shared.
#[derive(Debug)]
pub(crate) struct BootSnapshots {
    dir: PathBuf,
    locks: Locks,
    blanks: Mutex<()>,
}

impl BootSnapshots {
    pub(crate) fn open(dir: PathBuf) -> Self {
        Self { dir, locks: Locks::default(), blanks: Mutex::default() }
    }

    /// Returns the directory of the records of boot snapshots.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the lock for creating what has this name.
    pub(crate) fn lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        // Locks that no other task holds or waits for.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }

    /// Locks the creation of empty disks and memory files.
    pub(crate) fn lock_blanks(&self) -> MutexGuard<'_, ()> {
        self.blanks.lock()
    }
}

/// Returns the name of the boot snapshot that fits `spec`: a hash of everything that a memory snapshot
/// depends on.
pub(crate) fn boot_snapshot_key(host: &Host, base: &str, spec: &StartSpec) -> String {
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
