//! A start, from specification to a running PID 1 under watch.
//! The blocking part runs on the slot's own thread; the caller may be cancelled at any point and nothing stays behind.
//! By the time it returns, the record that lets a later server adopt the sandbox is on disk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{EngineError, RestoreMode, Sandbox, SnapshotId, StartSpec};
use engine_host::{ProcessId, tree_error, tree_of};
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::debug;

use crate::capture::State;
use crate::devices;
use crate::host::Host;
use crate::launch::{Parts, Started, launch};
use crate::private::copy_of;
use crate::record::Record;
use crate::restore::restore;
use crate::rootfs;
use crate::sandbox::ContainerSandbox;
use crate::slot::{Pool, Slot};

/// What a sandbox begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin {
    /// Its template alone.
    Template,
    /// A captured state.
    Snapshot(SnapshotId, RestoreMode),
}

/// Starts a sandbox.
pub(crate) async fn start(
    host: &Arc<Host>,
    pool: &Arc<Pool>,
    spec: StartSpec,
    origin: Origin,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let (host, pool) = (host.clone(), pool.clone());
    // One blocking task from the slot to the watcher: if the caller goes away, it still runs to its end and
    // the last handle dropped does not matter, because the watcher owns the sandbox.
    let blocking = tokio::task::spawn_blocking(move || start_blocking(&host, &pool, spec, origin));
    blocking.await.map_err(|_| EngineError::Died("the start was interrupted".into()))?
}

/// A running PID 1 and, if it did not take the slot's, its network.
struct Running {
    started: Started,
    network: Option<(Namespace, Listeners)>,
}

fn start_blocking(
    host: &Arc<Host>,
    pool: &Pool,
    spec: StartSpec,
    origin: Origin,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let slot = pool.take_ready().map_or_else(|| Slot::prepare(host), Ok)?;
    let job_host = host.clone();
    let job_spec = spec.clone();
    let (slot, running) = slot
        .run_on_thread(move |slot| run(&job_host, slot, &job_spec, origin))
        .recv()
        .map_err(|_| EngineError::Died("the slot's thread ended".into()))?;
    let Running { started: Started { pid, pidfd }, network: own_network } = match running {
        Ok(running) => running,
        Err(error) => {
            let _ = host.trees.discard(&tree_of(&spec.id));
            return Err(match origin {
                // Discarded while we were at it.
                Origin::Snapshot(id, _) if State::of(host, id).is_gone() => EngineError::NotFound,
                _ => error,
            });
        }
    };
    debug!(sandbox = %spec.id, pid, ?origin, "sandbox started");
    let (slot_network, slot_listeners, claim) = slot.into_parts();
    let (network, listeners) = own_network.unwrap_or((slot_network, slot_listeners));
    let gateway = Gateway::start(listeners, spec.egress, host.gateway.clone());
    let watched = gateway.and_then(|gateway| {
        ContainerSandbox::watch(host.clone(), spec.id, pidfd, network, Some(gateway), claim)
    });
    Ok(watched.map_err(EngineError::kernel("watch the sandbox"))?)
}

/// The part that runs on the slot's thread.
fn run(host: &Host, slot: &mut Slot, spec: &StartSpec, origin: Origin) -> Result<Running, EngineError> {
    let disk = spec.resources.disk_mib;
    slot.claim.group.limit(&spec.resources).map_err(EngineError::kernel("set limits"))?;
    let (agent, running) = match origin {
        Origin::Template => {
            let private = slot.tree.take(&spec.id, disk).map_err(tree_error("take a tree"))?;
            begin(host, slot, spec, &private)?
        }
        Origin::Snapshot(id, restore_mode) => {
            let state = State::of(host, id);
            let meta = state.meta()?;
            let private =
                copy_of(&host.trees, id, &spec.id, disk).map_err(tree_error("copy the captured files"))?;
            match restore_mode {
                RestoreMode::Disk => begin(host, slot, spec, &private)?,
                RestoreMode::Memory if !meta.memory => return Err(EngineError::NotFound),
                RestoreMode::Memory => {
                    // Its processes go on in the very files they were started from.
                    let agent = host.agent_layer_named(&meta.agent);
                    slot.dev = devices::make(slot.user_namespace.as_fd(), &meta.inner_boot)
                        .map_err(EngineError::kernel("make /dev"))?;
                    slot.inner_boot = meta.inner_boot;
                    let root = assemble(slot, spec, &agent, &private)?;
                    let restored =
                        restore(host, slot, &state.memory(), meta.memory_bytes, root, &spec.hostname)?;
                    let network = Some((restored.network, restored.listeners));
                    (agent, Running { started: restored.started, network })
                }
            }
        }
    };
    let agent = agent.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let record = ProcessId::of(running.started.pid).map(|process| Record {
        process,
        uid_base: slot.claim.uid_base,
        cgroup: slot.claim.group.name().to_owned(),
        agent,
        inner_boot: slot.inner_boot.clone(),
    });
    if let Err(source) = record.and_then(|record| host.records.save(&spec.id, &record)) {
        let _ = slot.claim.group.kill();
        return Err(EngineError::Kernel { step: "record the sandbox", source });
    }
    Ok(running)
}

/// Starts envd; returns the layer it comes from, too.
fn begin(
    host: &Host,
    slot: &Slot,
    spec: &StartSpec,
    private: &Path,
) -> Result<(PathBuf, Running), EngineError> {
    let agent = host.agent_layer.clone();
    let started = launch(Parts {
        user_namespace: &slot.user_namespace,
        network_namespace: &slot.network_namespace,
        cgroup: slot.claim.group.unified_fd(),
        root: assemble(slot, spec, &agent, private)?,
        root_target: &host.root_target,
        dev: slot.dev.as_fd(),
        shm_mib: spec.resources.memory_mib / 2,
        hostname: spec.hostname.clone(),
        pids: spec.resources.pids,
        listener: slot.agent_listener.as_fd(),
        filter: host.filter.clone(),
    })?;
    Ok((agent, Running { started, network: None }))
}

fn assemble(slot: &Slot, spec: &StartSpec, agent: &Path, private: &Path) -> Result<OwnedFd, EngineError> {
    let mut layers = vec![agent.to_owned()];
    layers.extend_from_slice(&spec.template.layers);
    let root = rootfs::assemble(&layers, private, slot.user_namespace.as_fd(), slot.claim.uid_base);
    root.map_err(EngineError::kernel("assemble the root file system"))
}
