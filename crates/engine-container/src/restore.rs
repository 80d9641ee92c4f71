//! Bringing processes back from a memory image: CRIU makes the namespaces, we make what they contain.
//! The network is configured and our listeners are opened before the first process runs.
//! The new sandbox has user ids, control groups and a `/dev` of its own, whoever it was captured from.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use engine::EngineError;
use net::Listeners;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sys::Namespace;

use crate::criu::RestorePlan;
use crate::host::Host;
use crate::launch::{Started, forbid_user_namespaces};
use crate::slot::Slot;

/// A restored PID 1 and the network made for it.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) started: Started,
    pub(crate) network: Namespace,
    pub(crate) listeners: Listeners,
}

/// Restores an image on the slot's thread.
pub(crate) fn restore(
    host: &Host,
    slot: &Slot,
    images: &Path,
    size: u64,
    root: OwnedFd,
    hostname: &str,
) -> Result<Restored, EngineError> {
    let mut network = None;
    let plan = RestorePlan {
        images,
        size_mib: u32::try_from(size >> 20).unwrap_or(u32::MAX),
        uid_base: slot.claim.uid_base,
        owner: slot.claim.owner(),
        root,
        dev: &slot.dev,
        cgroup: slot.claim.group.unified_path(),
    };
    let pid = host.memory()?.restore(&plan, |pid| {
        network = Some(furnish(pid, hostname)?);
        Ok(())
    });
    let opened = pid.and_then(|pid| {
        let raw = Pid::from_raw(pid).ok_or_else(|| EngineError::Restore("CRIU named no process".into()))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|_| EngineError::Restore("PID 1 ended at once".into()))?;
        let (network, listeners) =
            network.ok_or_else(|| EngineError::Restore("CRIU did not ask for the network".into()))?;
        Ok(Restored { started: Started { pid, pidfd }, network, listeners })
    });
    // CRIU ends what it could not restore; what it missed is ended here.
    opened.inspect_err(|_| {
        let _ = slot.claim.group.kill();
    })
}

/// Everything in fresh namespaces that an image does not carry.
fn furnish(pid: i32, hostname: &str) -> io::Result<(Namespace, Listeners)> {
    forbid_user_namespaces(&Namespace::of_process(pid, "user")?)?;
    sys::set_hostname_in(&Namespace::of_process(pid, "uts")?, hostname)?;
    let network = Namespace::of_process(pid, "net")?;
    net::configure(&network)?;
    let listeners = Listeners::open(&network)?;
    Ok((network, listeners))
}
