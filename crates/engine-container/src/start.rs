//! Starting a sandbox, from its specification to a running PID 1 that is watched.
//! The blocking part runs on the slot's own thread. The caller may be cancelled at any point; nothing is left behind then.
//! The record that lets a later server adopt the sandbox is written before the start returns.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{EngineError, RestoreMode, Sandbox, SnapshotId, StartSpec, VolumeMount};
use engine_host::{ProcessId, StartSource, tree_error, tree_of};
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::debug;

use crate::capture::SnapshotFiles;
use crate::criu::given_names;
use crate::devices;
use crate::host::Host;
use crate::launch::{InitProcess, LaunchParts, launch};
use crate::private_tree::{copy_snapshot_tree, open_upper, remove_given_name};
use crate::processors::ProcessorShare;
use crate::ready_slots::ReadySlots;
use crate::record::SandboxRecord;
use crate::resources::ResourceMounts;
use crate::restore::restore;
use crate::rootfs;
use crate::sandbox::ContainerSandbox;
use crate::slot::Slot;
use crate::volumes::{MountedVolume, mount_volumes};

/// Starts a sandbox.
///
/// # Errors
/// As [`engine::Engine::start`] and [`engine::Engine::restore`].
pub(crate) async fn start(
    host: &Arc<Host>,
    slots: &Arc<ReadySlots>,
    spec: StartSpec,
    source: StartSource,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let (host, slots) = (host.clone(), slots.clone());
    // One blocking task from taking the slot to watching PID 1: if the caller is cancelled, it still runs to its end. Dropping the
    // returned handle does not matter then, because the task that watches owns the sandbox.
    let blocking = tokio::task::spawn_blocking(move || start_blocking(&host, &slots, spec, source));
    blocking.await.map_err(|_| EngineError::Died("the start was interrupted".into()))?
}

/// A running PID 1 and the layer that its envd comes from.
struct StartedInit {
    init: InitProcess,
    envd_layer: PathBuf,
    has_resource_files: bool,
    /// Volumes that CRIU has mounted.
    volumes: Vec<MountedVolume>,
    /// The network of a restored sandbox; others have their slot's.
    network: Option<(Namespace, Listeners)>,
}

fn start_blocking(
    host: &Arc<Host>,
    slots: &ReadySlots,
    spec: StartSpec,
    source: StartSource,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let slot = slots.take_ready().map_or_else(|| Slot::prepare(host), Ok)?;
    let job_host = host.clone();
    let job_spec = spec.clone();
    let (slot, started) = slot
        .run_on_thread(move |slot| start_init(&job_host, slot, &job_spec, source))
        .recv()
        .map_err(|_| EngineError::Died("the slot's thread ended".into()))?;
    let StartedInit { init: InitProcess { pid, pidfd }, network: own_network, .. } = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = host.trees.discard(&tree_of(&spec.id));
            return Err(match source {
                // The snapshot was discarded in the meantime.
                StartSource::Snapshot(id, _) if SnapshotFiles::of(host, id).is_gone() => {
                    EngineError::NotFound
                }
                _ => error,
            });
        }
    };
    debug!(sandbox_id = %spec.id, pid, ?source, "sandbox started");
    let (slot_network, slot_listeners, processors, lease) = slot.into_parts();
    let (network, listeners) = own_network.unwrap_or((slot_network, slot_listeners));
    let gateway = Gateway::start(spec.id.as_str(), listeners, spec.egress, host.gateway.clone());
    let watched = gateway.and_then(|gateway| {
        ContainerSandbox::watch(spec.id, pidfd, network, Some(gateway), processors, lease)
    });
    Ok(watched.map_err(EngineError::kernel("watch the sandbox"))?)
}

/// Starts PID 1 and writes the sandbox's record. Runs on the slot's thread.
fn start_init(
    host: &Host,
    slot: &mut Slot,
    spec: &StartSpec,
    source: StartSource,
) -> Result<StartedInit, EngineError> {
    slot.lease.group.limit(&spec.resources).map_err(EngineError::kernel("set limits"))?;
    slot.processors = host.processors.take(spec.resources.cpu_count);
    let started = match source {
        StartSource::Template => {
            let tree =
                slot.tree.take(&spec.id, spec.resources.disk_mib).map_err(tree_error("take a tree"))?;
            start_envd(host, slot, spec, &tree)?
        }
        StartSource::Snapshot(id, restore_mode) => start_snapshot(host, slot, spec, id, restore_mode)?,
    };
    let volumes = mount_others(&started, &spec.volumes).inspect_err(|_| {
        let _ = slot.lease.group.kill();
    })?;
    let envd_layer = started.envd_layer.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let record = ProcessId::of(started.init.pid).map(|process| SandboxRecord {
        process,
        uid_base: slot.lease.uid_base,
        cgroup: slot.lease.group.name().to_owned(),
        envd_layer,
        inner_boot: slot.inner_boot.clone(),
        has_resource_files: started.has_resource_files,
        volumes,
    });
    if let Err(source) = record.and_then(|record| host.records.save(&spec.id, &record)) {
        let _ = slot.lease.group.kill();
        return Err(EngineError::Kernel { step: "record the sandbox", source });
    }
    Ok(started)
}

/// Mounts the volumes that are not mounted yet, and returns all of them.
fn mount_others(started: &StartedInit, volumes: &[VolumeMount]) -> Result<Vec<MountedVolume>, EngineError> {
    let mounted = &started.volumes;
    let others: Vec<VolumeMount> =
        volumes.iter().filter(|volume| mounted.iter().all(|one| one.path != volume.path)).cloned().collect();
    Ok([mounted.clone(), mount_volumes(started.init.pid, &others)?].concat())
}

/// Starts a snapshot's envd anew on its files, or restores its processes.
fn start_snapshot(
    host: &Host,
    slot: &mut Slot,
    spec: &StartSpec,
    id: SnapshotId,
    restore_mode: RestoreMode,
) -> Result<StartedInit, EngineError> {
    let snapshot = SnapshotFiles::of(host, id);
    let record = snapshot.record()?;
    let tree = copy_snapshot_tree(&host.trees, id, &spec.id, spec.resources.disk_mib)
        .map_err(tree_error("copy the snapshot's files"))?;
    match restore_mode {
        RestoreMode::Disk => {
            if record.memory {
                open_upper(&tree)
                    .and_then(|upper| {
                        given_names(&snapshot.memory(), |name| remove_given_name(upper.as_fd(), name))
                    })
                    .map_err(EngineError::kernel("remove names that only the memory needs"))?;
            }
            start_envd(host, slot, spec, &tree)
        }
        RestoreMode::Memory if !record.memory => Err(EngineError::NotFound),
        RestoreMode::Memory if record.has_resource_files && slot.resources.is_none() => {
            Err(EngineError::Restore("it was captured on a host with FUSE, and this one has none (modprobe fuse, then restart the server)".into()))
        }
        RestoreMode::Memory => {
            // The processes continue with the very files that they were started from.
            let envd_layer = host.envd_layer_named(&record.envd_layer);
            slot.dev = devices::make_dev(slot.user_namespace.as_fd(), &record.inner_boot)
                .map_err(EngineError::kernel("make /dev"))?;
            slot.inner_boot.clone_from(&record.inner_boot);
            let root = assemble_root(slot, spec, &envd_layer, &tree)?;
            let restored = restore(host, slot, &snapshot.memory(), &record, root, spec)?;
            let network = Some((restored.network, restored.listeners));
            let has_resource_files = record.has_resource_files;
            // Those that it does not have are empty now, and like any file system of its own.
            let has = |mounted: &MountedVolume| spec.volumes.iter().any(|own| own.path == mounted.path);
            let volumes = record.volumes.into_iter().filter(has).collect();
            Ok(StartedInit { init: restored.init, envd_layer, has_resource_files, volumes, network })
        }
    }
}

/// Starts envd as PID 1 on the files in `tree`.
fn start_envd(host: &Host, slot: &Slot, spec: &StartSpec, tree: &Path) -> Result<StartedInit, EngineError> {
    let envd_layer = host.envd_layer.clone();
    let init = launch(LaunchParts {
        user_namespace: &slot.user_namespace,
        network_namespace: &slot.network_namespace,
        cgroup: slot.lease.group.unified_fd(),
        root: assemble_root(slot, spec, &envd_layer, tree)?,
        root_target: &host.root_target,
        dev: slot.dev.as_fd(),
        resources: slot.resources.as_ref().map(ResourceMounts::borrow),
        processors: slot.processors.as_ref().map(ProcessorShare::set),
        shm_mib: spec.resources.memory_mib / 2,
        hostname: spec.hostname.clone(),
        pids: spec.resources.pids,
        listener: slot.envd_listener.as_fd(),
        filter: host.filter.clone(),
    })?;
    Ok(StartedInit {
        init,
        envd_layer,
        has_resource_files: slot.resources.is_some(),
        volumes: Vec::new(),
        network: None,
    })
}

fn assemble_root(
    slot: &Slot,
    spec: &StartSpec,
    envd_layer: &Path,
    tree: &Path,
) -> Result<OwnedFd, EngineError> {
    let mut layers = vec![envd_layer.to_owned()];
    layers.extend_from_slice(&spec.template.layers);
    let root = rootfs::assemble(&layers, tree, slot.user_namespace.as_fd(), slot.lease.uid_base);
    root.map_err(EngineError::kernel("assemble the root file system"))
}
