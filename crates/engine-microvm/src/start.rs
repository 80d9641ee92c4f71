//! A start, from specification to a running machine under watch: a boot, or a clone of a state.
//! Runs to its end by itself; if the caller went away meanwhile, the sandbox is ended again.
//! A clone's user code goes on only after its guest has confirmed that it has fresh randomness, the time and its own name.

use std::sync::Arc;

use engine::{EngineError, Resources, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec};
use engine_host::volume_of;
use guest_api::BootOptions;
use layers::VolumeName;
use net::Gateway;
use tracing::{debug, info, warn};

use crate::bases;
use crate::capture;
use crate::disks;
use crate::host::Host;
use crate::machine::command::{Beginning, DEVICES, STATE, Shape};
use crate::machine::{Complaints, Machine};
use crate::plan::{Plan, Started};
use crate::record::Build;
use crate::sandbox::{MicrovmSandbox, Parts};
use crate::state::State;
use crate::templates::warm_key;

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
    spec: StartSpec,
    origin: Origin,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    let host = host.clone();
    let (answer, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let outcome = begin(&host, &spec, origin).await;
        // Whoever gets the answer may close the engine next, and its directories go with the last hold on them.
        drop(host);
        if let Err(Ok(unwanted)) = answer.send(outcome)
            && let Err(error) = unwanted.kill().await
        {
            warn!(%error, "a sandbox that nobody wants any more could not be ended");
        }
    });
    let sandbox = receiver.await.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    Ok(sandbox)
}

async fn begin(
    host: &Arc<Host>,
    spec: &StartSpec,
    origin: Origin,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    match origin {
        Origin::Template => from_template(host, spec).await,
        Origin::Snapshot(id, restore_mode) => {
            let state = State::of_snapshot(host, id);
            let restored = from_state(host, spec, &state, restore_mode).await;
            // Discarded while we were at it.
            if restored.is_err() && !state.exists() { Err(EngineError::NotFound) } else { restored }
        }
    }
}

async fn from_template(host: &Arc<Host>, spec: &StartSpec) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let base = bases::prepare(host, &spec.template, spec.recurring).await?;
    let build = build(base.key.clone(), spec);
    let key = warm_key(host, &build.base, spec);
    let state = State::of_template(host, &key);
    if let Some(clone) = from_warm_start(host, spec, &build, &state).await {
        return clone;
    }
    if !spec.recurring {
        return named(boot_from_blank(host, spec, &build).await?, spec).await;
    }
    let lock = host.templates.lock(&key);
    let _one_at_a_time = lock.lock().await;
    // Of whoever had the lock before.
    if let Some(clone) = from_warm_start(host, spec, &build, &state).await {
        return clone;
    }
    make_warm_start(host, spec, &build, &state, &key).await?;
    match from_warm_start(host, spec, &build, &state).await {
        Some(clone) => clone,
        None => named(boot_from_blank(host, spec, &build).await?, spec).await,
    }
}

/// Boots a guest for nothing but its state. It is nobody's sandbox: a guest that has booted has touched all of its memory, of which its
/// clones have next to nothing. If it boots but cannot be captured, sandboxes boot.
async fn make_warm_start(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
    state: &State,
    key: &str,
) -> Result<(), EngineError> {
    let spec = StartSpec { id: SandboxId::generate(), ..spec.clone() };
    let sandbox = boot_from_blank(host, &spec, build).await?;
    match capture::keep_as_warm_start(&sandbox, state).await {
        Ok(took) => info!(key, milliseconds = took.as_millis(), "a template's warm start is kept"),
        Err(error) => warn!(%error, "no warm start could be kept; sandboxes of this template boot"),
    }
    sandbox.kill().await
}

/// A clone of the template's warm start, if it has one that can be loaded.
async fn from_warm_start(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
    state: &State,
) -> Option<Result<Arc<MicrovmSandbox>, EngineError>> {
    if !state.exists() {
        return None;
    }
    let fresh_boot = Some(uuid::Uuid::new_v4().to_string());
    match load(host, spec, build, state, fresh_boot).await {
        Err(EngineError::Restore(reason)) => {
            warn!(reason, "a template's warm start cannot be loaded; it is removed and the template boots");
            let (host, state) = (host.clone(), state.clone());
            let removed = tokio::task::spawn_blocking(move || state.discard(&host)).await;
            if let Ok(Err(error)) = removed {
                warn!(%error, "a warm start could not be removed");
            }
            None
        }
        answer => Some(answer),
    }
}

async fn from_state(
    host: &Arc<Host>,
    spec: &StartSpec,
    state: &State,
    restore_mode: RestoreMode,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let meta = state.meta()?;
    // Made anew if nothing has used it for long.
    let template = engine::TemplateImage { layers: meta.layers.clone(), engine: None };
    // Held until the machine does so itself.
    let held = bases::prepare(host, &template, false).await?;
    let base = held.key.clone();
    match restore_mode {
        RestoreMode::Disk => {
            let build = Build { disk_mib: meta.disk_mib, layers: meta.layers, ..build(base, spec) };
            named(boot(host, spec, &build, state.disk.clone()).await?, spec).await
        }
        RestoreMode::Memory if meta.memory.is_none() => Err(EngineError::NotFound),
        RestoreMode::Memory if meta.compatibility != host.compatibility() => Err(EngineError::Restore(
            "its memory was captured with another QEMU, machine, accelerator or processor; its files can still be brought back".into(),
        )),
        RestoreMode::Memory => {
            let (replay_host, replayed) = (host.clone(), state.clone());
            let replay = tokio::task::spawn_blocking(move || replayed.replay(&replay_host)).await;
            replay.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
            let build = Build { base, layers: meta.layers, shape: meta.shape, disk_mib: meta.disk_mib };
            load(host, spec, &build, state, None).await
        }
    }
}

fn build(base: String, spec: &StartSpec) -> Build {
    let Resources { cpu_count, memory_mib, disk_mib, .. } = spec.resources;
    let shape = Shape { cpus: cpu_count.max(1), memory_mib };
    let disk_mib = if disk_mib == 0 { disks::UNLIMITED_MIB } else { disk_mib.min(disks::MAX_MIB) };
    Build { base, layers: spec.template.layers.clone(), shape, disk_mib }
}

async fn boot_from_blank(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let (blank_host, size) = (host.clone(), build.disk_mib);
    let blank = tokio::task::spawn_blocking(move || disks::blank(&blank_host, size)).await;
    let blank = blank.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    boot(host, spec, build, blank).await
}

/// Boots; once more if the guest hangs, which emulation on a busy machine is known for.
async fn boot(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
    disk: VolumeName,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    match boot_once(host, spec, build, disk.clone()).await {
        Err(EngineError::Died(reason)) => {
            warn!(sandbox = %spec.id, reason, "a guest did not boot; trying once more");
            boot_once(host, spec, build, disk).await
        }
        answer => answer,
    }
}

async fn boot_once(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
    disk: VolumeName,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let memory = disks::hole(host, build.shape.memory_mib)?;
    let options = BootOptions { pids: spec.resources.pids, shm_mib: spec.resources.memory_mib / 2 };
    let plan = Plan {
        spec: spec.clone(),
        build: build.clone(),
        disk,
        memory,
        beginning: Beginning::Boot(options),
        source: host.boot.clone(),
    };
    let (sandbox, mut complaints) = run(host, plan).await?;
    let Err(reason) = sandbox.machine.agent.ready(host.boot_timeout).await else { return Ok(sandbox) };
    let console = sandbox.machine.monitor.console().await;
    let _ = sandbox.kill().await;
    let last: Vec<&str> = console.lines().rev().take(5).collect();
    Err(EngineError::Died(format!("{reason}; QEMU: {:?}; console: {last:?}", complaints.text())))
}

/// Gives a booted guest its name; what it has of randomness and time is its own already, but more does not hurt.
async fn named(sandbox: Arc<MicrovmSandbox>, spec: &StartSpec) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let named = sandbox.machine.agent.revive(&spec.hostname, None, spec.resources.pids).await;
    confirmed(sandbox, named, EngineError::Died).await
}

/// Starts a machine from a state. `boot_id` is what its user code shall take for the id of its boot, if not what it was.
async fn load(
    host: &Arc<Host>,
    spec: &StartSpec,
    build: &Build,
    state: &State,
    boot_id: Option<String>,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let source = host.volumes.path(&state.memory);
    let memory = match state.meta()?.memory {
        // All of it comes with the stream.
        Some(memory) if memory.is_stream => disks::hole(host, build.shape.memory_mib)?,
        _ => source.clone(),
    };
    let plan = Plan {
        spec: spec.clone(),
        build: build.clone(),
        disk: state.disk.clone(),
        memory,
        beginning: Beginning::Load,
        source,
    };
    let (sandbox, mut complaints) = run(host, plan).await?;
    let revive = async {
        let machine = &sandbox.machine;
        machine.monitor.load(&format!("/{STATE}/{DEVICES}")).await.map_err(|error| error.to_string())?;
        // It was ready when it was captured: no round to hear that again.
        machine.agent.revive(&spec.hostname, boot_id, spec.resources.pids).await
    };
    let revived = revive.await.map_err(|reason| format!("{reason}; QEMU: {:?}", complaints.text()));
    confirmed(sandbox, revived, EngineError::Restore).await
}

/// A guest that has not confirmed is ended before any of its user code runs.
async fn confirmed(
    sandbox: Arc<MicrovmSandbox>,
    outcome: Result<(), String>,
    failure: impl FnOnce(String) -> EngineError,
) -> Result<Arc<MicrovmSandbox>, EngineError> {
    let Err(reason) = outcome else { return Ok(sandbox) };
    sandbox.kill().await?;
    Err(failure(reason))
}

/// Starts QEMU and takes up the conversations with it.
async fn run(host: &Arc<Host>, plan: Plan) -> Result<(Arc<MicrovmSandbox>, Complaints), EngineError> {
    let (spec, build) = (plan.spec.clone(), plan.build.clone());
    let blocking_host = host.clone();
    let started = tokio::task::spawn_blocking(move || plan.carry_out(&blocking_host)).await;
    let Started { mut complaints, pid, pidfd, network, listeners, claim } =
        started.map_err(|_| EngineError::Died("the start was interrupted".into()))??;
    let sockets = host.sockets(spec.id.as_str());
    let gateway = Gateway::start(listeners, spec.egress.clone(), host.gateway.clone())
        .map_err(EngineError::kernel("open the gateway"));
    let watched = match (Machine::connect(&sockets).await, gateway) {
        (Ok(machine), Ok(gateway)) => {
            let gateway = Some(gateway);
            let parts = Parts { pid, pidfd, network, machine, gateway, claim, build };
            MicrovmSandbox::watch(spec.id.clone(), parts)
        }
        (machine, gateway) => {
            let error = machine.err().or(gateway.err()).map_or_else(String::new, |error| error.to_string());
            let _ = tokio::task::spawn_blocking(move || drop(claim)).await;
            discard(host, &spec).await;
            let complaints = complaints.text();
            return Err(EngineError::Died(format!("{error}; QEMU: {complaints:?}")));
        }
    };
    let sandbox = watched.map_err(EngineError::kernel("watch the sandbox"))?;
    debug!(sandbox = %spec.id, pid, "machine started");
    Ok((sandbox, complaints))
}

async fn discard(host: &Arc<Host>, spec: &StartSpec) {
    let (host, id) = (host.clone(), spec.id.clone());
    let remove = move || {
        host.sockets(id.as_str()).remove();
        let _ = host.records.remove(&id);
        if let Err(error) = host.volumes.discard(&volume_of(&id)) {
            warn!(sandbox = %id, %error, "a sandbox's files could not be discarded");
        }
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}
