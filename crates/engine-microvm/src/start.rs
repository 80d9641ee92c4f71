//! Starting sandboxes: boots and restores, from a specification to a registered sandbox.
//!
//! A start runs to completion by itself; if its caller was cancelled meanwhile, the new sandbox is
//! killed. User code of a clone is resumed only after its guest has confirmed fresh randomness, the
//! clock and its own host name.

use std::sync::Arc;

use engine::{EngineError, Resources, RestoreMode, Sandbox, SandboxId, StartSpec};
use engine_host::StartSource;
use guest_api::BootOptions;
use layers::TreeName;
use net::Gateway;
use tracing::{debug, info, warn};

use crate::base_images;
use crate::boot_snapshots::boot_snapshot_key;
use crate::capture;
use crate::disks;
use crate::host::Host;
use crate::launch_plan::{LaunchPlan, LaunchedQemu};
use crate::record::VmSpec;
use crate::sandbox::{MicrovmSandbox, SandboxParts};
use crate::snapshot::SnapshotFiles;
use crate::vm::command_line::{DEVICES_FILE, SNAPSHOT_DIR, StartMode, VmSize};
use crate::vm::{QemuLog, Vm};

/// Starts a sandbox.
///
/// # Errors
/// The template or snapshot cannot be used, QEMU or the guest does not start, or the host has no
/// room.
pub(crate) async fn start(
    host: &Arc<Host>,
    spec: StartSpec,
    source: StartSource,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let host = host.clone();
    let (outcome_sender, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let outcome = start_from(&host, &spec, source).await;
        // The caller may close the engine as soon as it has the outcome; the last reference to the
        // host removes its directories.
        drop(host);
        if let Err(Ok(unwanted)) = outcome_sender.send(outcome)
            && let Err(error) = unwanted.kill().await
        {
            warn!(%error, "failed to kill a sandbox whose create was cancelled");
        }
    });
    let sandbox = receiver.await.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    Ok(sandbox)
}

async fn start_from(
    host: &Arc<Host>,
    spec: &StartSpec,
    source: StartSource,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    match source {
        StartSource::Template => from_template(host, spec).await,
        StartSource::Snapshot(id, restore_mode) => {
            let snapshot = SnapshotFiles::of_snapshot(host, id);
            let restored = from_snapshot(host, spec, &snapshot, restore_mode).await;
            // The snapshot was removed meanwhile.
            if restored.is_err() && !snapshot.exists() { Err(EngineError::NotFound) } else { restored }
        }
    }
}

async fn from_template(host: &Arc<Host>, spec: &StartSpec) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let base = base_images::prepare(host, &spec.template, spec.recurring).await?;
    let vm_spec = vm_spec_for(base.key.clone(), spec);
    let key = boot_snapshot_key(host, &vm_spec.base, spec);
    let snapshot = SnapshotFiles::of_boot_snapshot(host, &key);
    if let Some(clone) = from_boot_snapshot(host, spec, &vm_spec, &snapshot).await {
        return clone;
    }
    if !spec.recurring {
        return personalized(boot_from_blank(host, spec, &vm_spec).await?, spec).await;
    }
    let lock = host.boot_snapshots.lock(&key);
    let _one_at_a_time = lock.lock().await;
    // Made by the task that held the lock before.
    if let Some(clone) = from_boot_snapshot(host, spec, &vm_spec, &snapshot).await {
        return clone;
    }
    make_boot_snapshot(host, spec, &vm_spec, &snapshot, &key).await?;
    match from_boot_snapshot(host, spec, &vm_spec, &snapshot).await {
        Some(clone) => clone,
        None => personalized(boot_from_blank(host, spec, &vm_spec).await?, spec).await,
    }
}

/// Boots a guest only to capture it as a boot snapshot. It does not become a sandbox: a booted guest
/// has touched all of its memory, while a clone holds next to none. If the capture fails, sandboxes
/// of the template boot.
async fn make_boot_snapshot(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
    snapshot: &SnapshotFiles,
    key: &str,
) -> Result<(), EngineError> {
    let spec = StartSpec { id: SandboxId::generate(), ..spec.clone() };
    let sandbox = boot_from_blank(host, &spec, vm_spec).await?;
    match capture::capture_boot_snapshot(&sandbox, snapshot).await {
        Ok(took) => info!(key, milliseconds = took.as_millis(), "captured a template's boot snapshot"),
        Err(error) => warn!(%error, "failed to capture a boot snapshot; sandboxes of this template boot"),
    }
    sandbox.kill().await
}

/// Restores the boot snapshot of a template. Returns `None` if there is none or it cannot be restored.
async fn from_boot_snapshot(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
    snapshot: &SnapshotFiles,
) -> Option<Result<Arc<MicrovmSandbox>, EngineError>> {
    if !snapshot.exists() {
        return None;
    }
    let fresh_boot = Some(uuid::Uuid::new_v4().to_string());
    match load(host, spec, vm_spec, snapshot, fresh_boot).await {
        Err(EngineError::Restore(reason)) => {
            warn!(
                reason,
                "failed to restore a template's boot snapshot; it is removed and the next sandbox boots"
            );
            let (host, snapshot) = (host.clone(), snapshot.clone());
            let removed = tokio::task::spawn_blocking(move || snapshot.discard(&host)).await;
            if let Ok(Err(error)) = removed {
                warn!(%error, "failed to remove a boot snapshot");
            }
            None
        }
        answer => Some(answer),
    }
}

async fn from_snapshot(
    host: &Arc<Host>,
    spec: &StartSpec,
    snapshot: &SnapshotFiles,
    restore_mode: RestoreMode,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let record = snapshot.record()?;
    // The base image is built again if it was removed.
    let template = engine::TemplateImage { layers: record.layers.clone(), engine: None };
    // This reference keeps the base image until the VM has one of its own.
    let base_image = base_images::prepare(host, &template, false).await?;
    let base = base_image.key.clone();
    match restore_mode {
        RestoreMode::Disk => {
            let vm_spec = VmSpec { disk_mib: record.disk_mib, layers: record.layers, ..vm_spec_for(base, spec) };
            personalized(boot(host, spec, &vm_spec, snapshot.disk.clone()).await?, spec).await
        }
        RestoreMode::Memory if record.memory.is_none() => Err(EngineError::NotFound),
        RestoreMode::Memory if record.compatibility != host.compatibility() => Err(EngineError::Restore(
            "its memory was captured with another QEMU version, machine type, accelerator or processor; its files can still be brought back".into(),
        )),
        RestoreMode::Memory => {
            let (replay_host, replayed) = (host.clone(), snapshot.clone());
            let replay = tokio::task::spawn_blocking(move || replayed.replay(&replay_host)).await;
            replay.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
            let vm_spec = VmSpec { base, layers: record.layers, size: record.size, disk_mib: record.disk_mib };
            load(host, spec, &vm_spec, snapshot, None).await
        }
    }
}

fn vm_spec_for(base: String, spec: &StartSpec) -> VmSpec {
    let Resources { cpu_count, memory_mib, disk_mib, .. } = spec.resources;
    let size = VmSize { cpus: cpu_count.max(1), memory_mib };
    let disk_mib = if disk_mib == 0 { disks::DEFAULT_DISK_MIB } else { disk_mib.min(disks::MAX_DISK_MIB) };
    VmSpec { base, layers: spec.template.layers.clone(), size, disk_mib }
}

async fn boot_from_blank(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let (blank_host, size) = (host.clone(), vm_spec.disk_mib);
    let blank = tokio::task::spawn_blocking(move || disks::blank_disk(&blank_host, size)).await;
    let blank = blank.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    boot(host, spec, vm_spec, blank).await
}

/// Boots a guest; once more if it does not become ready, which happens now and then in emulation on
/// a busy host.
async fn boot(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
    disk: TreeName,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    match boot_once(host, spec, vm_spec, disk.clone()).await {
        Err(EngineError::Died(reason)) => {
            warn!(sandbox_id = %spec.id, reason, "the guest did not boot; trying once more");
            boot_once(host, spec, vm_spec, disk).await
        }
        answer => answer,
    }
}

async fn boot_once(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
    disk: TreeName,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let memory = disks::zero_memory(host, vm_spec.size.memory_mib)?;
    let options = BootOptions { pids: spec.resources.pids, shm_mib: spec.resources.memory_mib / 2 };
    let plan = LaunchPlan {
        spec: spec.clone(),
        vm_spec: vm_spec.clone(),
        disk,
        memory,
        start_mode: StartMode::Boot(options),
        source: host.boot.clone(),
    };
    let (sandbox, mut qemu_log) = launch_vm(host, plan).await?;
    let Err(reason) = sandbox.vm.guest_agent.wait_until_ready(host.boot_timeout).await else {
        return Ok(sandbox);
    };
    let console = sandbox.vm.monitor.console_tail().await;
    let _ = sandbox.kill().await;
    let last: Vec<&str> = console.lines().rev().take(5).collect();
    Err(EngineError::Died(format!("{reason}; QEMU: {:?}; console: {last:?}", qemu_log.text())))
}

/// Gives a booted guest its host name and limits, and fresh randomness and time, which it does not
/// need.
async fn personalized(
    sandbox: Arc<MicrovmSandbox>,
    spec: &StartSpec,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let outcome = sandbox.vm.guest_agent.personalize(&spec.hostname, None, spec.resources.pids).await;
    kill_unless_ok(sandbox, outcome, EngineError::Died).await
}

/// Restores a VM from the memory of a snapshot. With `boot_id`, user code sees that as the id of
/// the boot; otherwise the id stays as captured.
async fn load(
    host: &Arc<Host>,
    spec: &StartSpec,
    vm_spec: &VmSpec,
    snapshot: &SnapshotFiles,
    boot_id: Option<String>,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let source = host.trees.path(&snapshot.memory);
    let memory = match snapshot.record()?.memory {
        // The stream contains all of the memory.
        Some(memory) if memory.is_stream => disks::zero_memory(host, vm_spec.size.memory_mib)?,
        _ => source.clone(),
    };
    let plan = LaunchPlan {
        spec: spec.clone(),
        vm_spec: vm_spec.clone(),
        disk: snapshot.disk.clone(),
        memory,
        start_mode: StartMode::Load,
        source,
    };
    let (sandbox, mut qemu_log) = launch_vm(host, plan).await?;
    let restored = async {
        let vm = &sandbox.vm;
        vm.monitor
            .load_state(&format!("/{SNAPSHOT_DIR}/{DEVICES_FILE}"))
            .await
            .map_err(|error| error.to_string())?;
        // It was ready when it was captured, so waiting for that again would cost a round trip.
        vm.guest_agent.personalize(&spec.hostname, boot_id, spec.resources.pids).await
    };
    let outcome = restored.await.map_err(|reason| format!("{reason}; QEMU: {:?}", qemu_log.text()));
    kill_unless_ok(sandbox, outcome, EngineError::Restore).await
}

/// Kills a sandbox whose guest has not confirmed, before any of its user code runs.
async fn kill_unless_ok(
    sandbox: Arc<MicrovmSandbox>,
    outcome: Result<(), String>,
    failure: impl FnOnce(String) -> EngineError,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let Err(reason) = outcome else { return Ok(sandbox) };
    sandbox.kill().await?;
    Err(failure(reason))
}

/// Launches QEMU, connects to its monitor and guest agent, and registers the sandbox.
async fn launch_vm(
    host: &Arc<Host>,
    plan: LaunchPlan,
) -> Result<(Arc<MicrovmSandbox>, QemuLog), EngineError> {
    let (spec, vm_spec) = (plan.spec.clone(), plan.vm_spec.clone());
    let blocking_host = host.clone();
    let started = tokio::task::spawn_blocking(move || plan.launch(&blocking_host)).await;
    let LaunchedQemu { mut qemu_log, pid, pidfd, network, listeners, lease } =
        started.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    let sockets = host.sockets(spec.id.as_str());
    let gateway = Gateway::start(spec.id.as_str(), listeners, spec.egress.clone(), host.gateway.clone())
        .map_err(EngineError::kernel("open the gateway"));
    let watched = match (Vm::connect(&sockets).await, gateway) {
        (Ok(vm), Ok(gateway)) => {
            let gateway = Some(gateway);
            let parts = SandboxParts { pid, pidfd, network, vm, gateway, lease, vm_spec };
            MicrovmSandbox::watch(spec.id.clone(), parts)
        }
        (vm, gateway) => {
            let error = vm.err().or(gateway.err()).map_or_else(String::new, |error| error.to_string());
            let _ = tokio::task::spawn_blocking(move || drop(lease)).await;
            remove_files(host, &spec).await;
            let qemu_log = qemu_log.text();
            return Err(EngineError::Died(format!("{error}; QEMU: {qemu_log:?}")));
        }
    };
    let sandbox = watched.map_err(EngineError::kernel("watch the sandbox"))?;
    debug!(sandbox_id = %spec.id, pid, "VM started");
    Ok((sandbox, qemu_log))
}

async fn remove_files(host: &Arc<Host>, spec: &StartSpec) {
    let (host, id) = (host.clone(), spec.id.clone());
    let remove = move || {
        host.sockets(id.as_str()).remove();
        host.remove_sandbox(&id);
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}
