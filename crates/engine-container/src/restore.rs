//! Restoring processes from a memory image: CRIU creates the namespaces, this module configures them.
//! The network is configured and our listeners are opened before the first process runs.
//! The new sandbox has user ids, control groups and a `/dev` of its own, whatever it was captured with.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use engine::{EngineError, StartSpec};
use net::Listeners;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sys::Namespace;

use crate::capture::SnapshotRecord;
use crate::criu::{RestorePlan, RestoreStage, has_connections};
use crate::echo::allow_limited_echo;
use crate::host::Host;
use crate::launch::{InitProcess, forbid_user_namespaces};
use crate::processors::ProcessorShare;
use crate::resources::ResourceMounts;
use crate::scheduling::restore_scheduling;
use crate::slot::Slot;
use crate::volume_locks::check_locks;
use crate::volumes::{self, MountedVolume};

/// A restored PID 1 and the network that was made for it.
#[derive(Debug)]
pub(crate) struct RestoredInit {
    pub(crate) init: InitProcess,
    pub(crate) network: Namespace,
    pub(crate) listeners: Listeners,
}

/// Restores the memory image in the directory `images`. Called on the slot's thread.
///
/// # Errors
/// [`EngineError::Restore`] with CRIU's reason; no process of the sandbox is left then.
pub(crate) fn restore(
    host: &Host,
    slot: &Slot,
    images: &Path,
    record: &SnapshotRecord,
    root: OwnedFd,
    spec: &StartSpec,
) -> Result<RestoredInit, EngineError> {
    let mut network = None;
    check_locks(&record.volume_locks, &spec.volumes)?;
    let volumes = volumes_of(slot, record, spec)?;
    let plan = RestorePlan {
        images,
        size_mib: u32::try_from(record.memory_bytes >> 20).unwrap_or(u32::MAX),
        uid_base: slot.lease.uid_base,
        owner: slot.lease.namespace_owner(),
        root,
        dev: &slot.dev,
        processors: slot.processors.as_ref().map(ProcessorShare::set),
        resources: slot.resources.as_ref().map(ResourceMounts::borrow),
        volumes: &volumes,
        cgroup: slot.lease.group.unified_path(),
    };
    let has_connections = has_connections(images).map_err(EngineError::kernel("read the memory image"))?;
    let pid = host.checkpointer()?.restore(&plan, |stage| match (stage, &network) {
        (RestoreStage::Namespaces(pid), _) => {
            let (namespace, listeners) = configure_namespaces(pid, &spec.hostname)?;
            allow_limited_echo(host.echo_limit.as_ref(), &slot.lease.group, &namespace);
            if has_connections {
                net::hold_tcp(&namespace)?;
            }
            network = Some((namespace, listeners));
            Ok(())
        }
        (RestoreStage::Restored, namespace) => {
            restore_scheduling(slot.lease.group.unified_path(), &record.scheduling)?;
            match namespace {
                Some((namespace, _)) if has_connections => net::release_tcp(namespace),
                _ => Ok(()),
            }
        }
    });
    let opened = pid.and_then(|pid| {
        let raw = Pid::from_raw(pid).ok_or_else(|| EngineError::Restore("CRIU named no process".into()))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|_| EngineError::Restore("PID 1 ended at once".into()))?;
        let (network, listeners) =
            network.ok_or_else(|| EngineError::Restore("CRIU did not ask for the network".into()))?;
        Ok(RestoredInit { init: InitProcess { pid, pidfd }, network, listeners })
    });
    // CRIU kills the processes that it could not restore; this kills those that it missed.
    opened.inspect_err(|_| {
        let _ = slot.lease.group.kill();
    })
}

/// Returns a mount for each volume of the image: the sandbox's own at this path, or nothing.
fn volumes_of(slot: &Slot, record: &SnapshotRecord, spec: &StartSpec) -> Result<Vec<OwnedFd>, EngineError> {
    let mount = |mounted: &MountedVolume| {
        let own = spec.volumes.iter().find(|own| own.path == mounted.path);
        let mount = match own {
            None => volumes::nothing(),
            Some(own) if own.read_only == mounted.read_only => {
                volumes::detached(own, slot.user_namespace.as_fd())
            }
            // CRIU gives the mount the rights that it had.
            Some(own) => {
                let had = if mounted.read_only { "read-only" } else { "writable" };
                let reason = format!("the snapshot has a volume there that is {had}");
                return Err(EngineError::Mount { path: own.path.clone(), reason });
            }
        };
        mount.map_err(EngineError::kernel("mount a volume"))
    };
    record.volumes.iter().map(mount).collect()
}

/// Configures in the fresh namespaces of the process `pid` what an image does not carry. Returns the network namespace and the
/// listeners inside it.
fn configure_namespaces(pid: i32, hostname: &str) -> io::Result<(Namespace, Listeners)> {
    forbid_user_namespaces(&Namespace::of_process(pid, "user")?)?;
    sys::set_hostname_in(&Namespace::of_process(pid, "uts")?, hostname)?;
    let network = Namespace::of_process(pid, "net")?;
    net::configure(&network)?;
    let listeners = Listeners::open(&network)?;
    Ok((network, listeners))
}
