//! [`Lease`]: what a VM holds of the host besides its process, ids and a control group with the limits of guest and QEMU.

use std::sync::Arc;

use engine::{EngineError, Resources};
use engine_host::HostLease;

use crate::host::Host;

/// Memory of QEMU itself, MiB: its own and, in emulation, translated code.
const OVERHEAD_MIB: u32 = 192;
/// Threads of QEMU besides its virtual processors.
const THREADS: u32 = 128;

/// Ids and a control group, held for one VM.
pub(crate) type Lease = HostLease<Host>;

/// Takes ids and creates a control group with room for QEMU beside these limits.
///
/// # Errors
/// Every range of ids is in use, or the kernel refused.
pub(crate) fn take(host: &Arc<Host>, resources: &Resources) -> Result<Lease, EngineError> {
    let lease = Lease::take(host)?;
    let limits = Resources {
        memory_mib: resources.memory_mib.saturating_add(OVERHEAD_MIB),
        pids: THREADS + resources.cpu_count,
        ..*resources
    };
    lease.group.limit(&limits).map_err(EngineError::kernel("set limits"))?;
    Ok(lease)
}
