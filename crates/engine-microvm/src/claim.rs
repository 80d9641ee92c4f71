//! What a machine holds of the host besides its process: ids and a control group.
//! Dropping it gives both back, with every process that may be left in the group.
//! A server that leaves its machines to a later one lets go without giving back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{EngineError, Resources};
use engine_host::Group;
use tracing::warn;

use crate::host::Host;

/// Memory of QEMU itself, MiB: its own and, in emulation, translated code.
const OVERHEAD_MIB: u32 = 192;
/// Threads of QEMU besides its virtual processors.
const THREADS: u32 = 128;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) host: Arc<Host>,
    pub(crate) uid_base: u32,
    pub(crate) group: Group,
    left: AtomicBool,
}

impl Claim {
    /// Takes ids and makes a group with these limits.
    pub(crate) fn take(host: &Arc<Host>, resources: &Resources) -> Result<Self, EngineError> {
        let uid_base =
            host.uids.take().ok_or_else(|| EngineError::Exhausted("every uid range is in use".into()))?;
        let group = Group::create(&host.hierarchies, &format!("s{uid_base:x}"))
            .inspect_err(|_| host.uids.release(uid_base))
            .map_err(EngineError::kernel("make a cgroup"))?;
        let claim = Self::of(host.clone(), uid_base, group);
        let limits = Resources {
            memory_mib: resources.memory_mib.saturating_add(OVERHEAD_MIB),
            pids: THREADS + resources.cpu_count,
            ..*resources
        };
        claim.group.limit(&limits).map_err(EngineError::kernel("set limits"))?;
        Ok(claim)
    }

    /// Of a machine that runs already.
    pub(crate) fn of(host: Arc<Host>, uid_base: u32, group: Group) -> Self {
        Self { host, uid_base, group, left: AtomicBool::new(false) }
    }

    /// Leaves it to a machine that lives on without this server.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Ends every process in the group and waits, for a limited time, until none is left.
    pub(crate) fn end_processes(&self) -> io::Result<()> {
        self.group.kill()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if *self.left.get_mut() {
            return;
        }
        if let Err(error) = self.end_processes().and_then(|()| self.group.remove()) {
            // The sweeper finds it at the next start; until then nobody else may have its ids.
            warn!(group = self.group.name(), %error, "a control group could not be removed");
            return;
        }
        self.host.uids.release(self.uid_base);
    }
}
