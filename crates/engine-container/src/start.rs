//! A start, from specification to a running PID 1 under watch.
//! The blocking part runs on the slot's own thread; the caller may be cancelled at any point and nothing stays behind.
//! By the time it returns, the record that lets a later server adopt the sandbox is on disk.

use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{EngineError, Sandbox, StartSpec};
use net::Gateway;
use tracing::debug;

use crate::host::Host;
use crate::launch::{Parts, Started, launch};
use crate::record::Record;
use crate::rootfs;
use crate::sandbox::ContainerSandbox;
use crate::slot::{Pool, Slot};

/// Starts a sandbox.
pub(crate) async fn start(
    host: &Arc<Host>,
    pool: &Arc<Pool>,
    spec: StartSpec,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let (host, pool) = (host.clone(), pool.clone());
    // One blocking task from the slot to the watcher: if the caller goes away, it still runs to its end and
    // the last handle dropped does not matter, because the watcher owns the sandbox.
    let blocking = tokio::task::spawn_blocking(move || start_blocking(&host, &pool, spec));
    blocking.await.map_err(|_| EngineError::Died("the start was interrupted".into()))?
}

fn start_blocking(host: &Arc<Host>, pool: &Pool, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError> {
    let slot = pool.take_ready().map_or_else(|| Slot::prepare(host), Ok)?;
    let private = host.sandboxes.join(spec.id.as_str());
    let job_host = host.clone();
    let job_spec = spec.clone();
    let (slot, started) = slot
        .run_on_thread(move |slot| run(&job_host, slot, &job_spec))
        .recv()
        .map_err(|_| EngineError::Died("the slot's thread ended".into()))?;
    let Started { pid, pidfd } = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = host.janitor.discard(&private);
            return Err(error);
        }
    };
    debug!(sandbox = %spec.id, pid, "sandbox started");
    let (network, listeners, claim) = slot.into_parts();
    let gateway = Gateway::start(listeners, spec.egress, host.gateway.clone());
    let watched = gateway.and_then(|gateway| {
        ContainerSandbox::watch(host.clone(), spec.id, pidfd, network, Some(gateway), claim)
    });
    Ok(watched.map_err(EngineError::kernel("watch the sandbox"))?)
}

/// The part that runs on the slot's thread.
fn run(host: &Host, slot: &Slot, spec: &StartSpec) -> Result<Started, EngineError> {
    let private = host.sandboxes.join(spec.id.as_str());
    slot.claim.group.limit(&spec.resources).map_err(EngineError::kernel("set limits"))?;
    rootfs::create_private(&private).map_err(EngineError::kernel("make the sandbox's folders"))?;
    let mut layers = vec![host.agent_layer.clone()];
    layers.extend_from_slice(&spec.template.layers);
    let root = rootfs::assemble(&layers, &private, slot.user_namespace.as_fd(), slot.claim.uid_base)
        .map_err(EngineError::kernel("assemble the root file system"))?;
    let started = launch(Parts {
        user_namespace: &slot.user_namespace,
        network_namespace: &slot.network_namespace,
        cgroup: slot.claim.group.unified_fd(),
        root,
        root_target: &host.root_target,
        dev: slot.dev.as_fd(),
        shm_mib: spec.resources.memory_mib / 2,
        hostname: spec.hostname.clone(),
        pids: spec.resources.pids,
        listener: slot.agent_listener.as_fd(),
        filter: host.filter.clone(),
    })?;
    let record = Record::of(started.pid, slot.claim.uid_base, slot.claim.group.name().to_owned());
    if let Err(source) = record.and_then(|record| record.save(&private)) {
        let _ = slot.claim.group.kill();
        return Err(EngineError::Kernel { step: "record the sandbox", source });
    }
    Ok(started)
}
