//! Captured states of machines: stop, save the devices, copy disk and memory, go on.
//! The disk is copied with its volume and the memory as `memory` says; the note that makes a state of them comes last.
//! The sandbox stands still meanwhile and is then as it was, also when this fails.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Captured, EngineError, Sandbox};
use engine_host::{volume_error, volume_of};
use guest_api::relay::Wish;
use layers::room_beside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::Host;
use crate::machine::command::{DEVICES, GUEST_MEMORY, OWN};
use crate::memory;
use crate::sandbox::MicrovmSandbox;
use crate::state::{Meta, State};

/// Time for a freshly booted envd to answer.
const WARM_PATIENCE: Duration = Duration::from_secs(30);
const ENVD_PORT: u16 = guest_api::ENVD_PORT;

/// Captures a sandbox as `state`.
pub(crate) async fn capture(
    sandbox: &Arc<MicrovmSandbox>,
    state: &State,
    memory: bool,
) -> Result<Captured, EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let begun = Instant::now();
    let claim = sandbox.claim()?;
    if *frozen {
        // QEMU itself must run to save its devices; the virtual processors stay stopped.
        claim.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
    } else {
        sandbox.halt().await?;
    }
    let written = write(sandbox, state, memory).await;
    let stopped = begun.elapsed();
    if *frozen {
        claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.go_on().await?;
    }
    let memory_bytes = written.map_err(|error| match error {
        EngineError::Capture(_) => error,
        other => EngineError::Capture(other.to_string()),
    })?;
    Ok(Captured { memory, memory_bytes, stopped })
}

/// Captures a booted guest that nobody has used yet as its template's warm start. Its user code does not go on here: it has to be
/// made one of its own first, as the clones will be. Answers how long it took.
pub(crate) async fn keep_as_warm_start(
    sandbox: &Arc<MicrovmSandbox>,
    state: &State,
) -> Result<Duration, EngineError> {
    let begun = Instant::now();
    // An answered request is what makes the agent's code and its libraries be in memory.
    match tokio::time::timeout(WARM_PATIENCE, ask_health(sandbox)).await {
        Ok(answer) => answer.map_err(EngineError::kernel("ask envd how it is"))?,
        Err(_) => return Err(EngineError::Timeout("the first answer of envd")),
    }
    sandbox.machine.agent.still().await.map_err(EngineError::Capture)?;
    sandbox.machine.monitor.stop().await?;
    let written = write(sandbox, state, true).await;
    sandbox.machine.monitor.cont().await?;
    written.map(|_| begun.elapsed())
}

async fn ask_health(sandbox: &MicrovmSandbox) -> std::io::Result<()> {
    let mut stream = sandbox.dial(ENVD_PORT).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.") { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Writes the state of a stopped machine; answers how much of the memory was its own.
async fn write(sandbox: &Arc<MicrovmSandbox>, state: &State, with_memory: bool) -> Result<u64, EngineError> {
    if with_memory {
        sandbox.machine.monitor.save_devices(&format!("/{OWN}/{DEVICES}")).await?;
    }
    let claim = sandbox.claim()?;
    let (sandbox, state) = (sandbox.clone(), state.clone());
    let work = move || {
        let written = write_files(&claim.host, &sandbox, &state, with_memory);
        if written.is_err() {
            let _ = state.discard(&claim.host);
        }
        written
    };
    let written = tokio::task::spawn_blocking(work).await;
    written.map_err(|_| EngineError::Capture("the capture was interrupted".into()))?
}

fn write_files(
    host: &Host,
    sandbox: &MicrovmSandbox,
    state: &State,
    with_memory: bool,
) -> Result<u64, EngineError> {
    // Remains of a server that was killed at this very point.
    state.discard(host)?;
    let mut memory_bytes = None;
    if with_memory {
        check_room(host, sandbox)?;
        host.volumes.create(&state.memory, None).map_err(volume_error("make a volume for the memory"))?;
        let folder = host.volumes.path(&state.memory);
        let save = || {
            let private = host.volumes.path(&volume_of(&sandbox.id));
            let mut devices = fs::File::create(folder.join(DEVICES))?;
            std::io::copy(&mut fs::File::open(private.join(DEVICES))?, &mut devices)?;
            devices.flush()?;
            devices.sync_all()?;
            let own = memory::save(sandbox.pid, &folder.join(GUEST_MEMORY))?;
            open_to_machines(&folder)?;
            fs::File::open(&folder)?.sync_all()?;
            std::io::Result::Ok(own)
        };
        memory_bytes = Some(save().map_err(EngineError::kernel("write the memory image"))?);
    }
    host.volumes
        .copy(&volume_of(&sandbox.id), &state.disk, true, None)
        .map_err(volume_error("capture the disk"))?;
    let build = &sandbox.build;
    let meta = Meta {
        base: build.base.clone(),
        layers: build.layers.clone(),
        shape: build.shape,
        disk_mib: build.disk_mib,
        memory_bytes,
        compatibility: host.compatibility(),
    };
    state.commit(&meta).map_err(EngineError::kernel("record the captured state"))?;
    Ok(memory_bytes.unwrap_or(0))
}

/// Machines run as users of their own and only read these.
fn open_to_machines(folder: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    [DEVICES, GUEST_MEMORY]
        .iter()
        .try_for_each(|file| fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o444)))
}

/// A memory image must not take the last of a disk that volumes lie on: no sandbox of this server would survive that.
fn check_room(host: &Host, sandbox: &MicrovmSandbox) -> Result<(), EngineError> {
    let used = sandbox.claim()?.group.stats().map_err(EngineError::kernel("read statistics"))?.memory_bytes;
    let room =
        room_beside(&host.snapshots).map_err(EngineError::kernel("look for room for the memory image"))?;
    if used <= room {
        return Ok(());
    }
    Err(EngineError::Exhausted(format!(
        "its memory takes up to {} MiB and the disk of captured states has {} to give; free some space or capture without memory",
        used >> 20,
        room >> 20
    )))
}

/// Writes what a sandbox changed of its template into `target`, as a layer. The guest sends it; what comes is treated as hostile.
pub(crate) async fn export_layer(sandbox: &Arc<MicrovmSandbox>, target: PathBuf) -> Result<(), EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let claim = sandbox.claim()?;
    if *frozen {
        // Its user code stays stopped.
        claim.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
        sandbox.machine.monitor.cont().await?;
    } else {
        sandbox.machine.agent.still().await.map_err(EngineError::Capture)?;
    }
    let exported = receive(sandbox, target).await;
    if *frozen {
        sandbox.machine.monitor.stop().await?;
        claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.machine.agent.go().await.map_err(EngineError::Capture)?;
    }
    exported
}

async fn receive(sandbox: &MicrovmSandbox, target: PathBuf) -> Result<(), EngineError> {
    let stream = sandbox.relay(Wish::Export).await.map_err(EngineError::kernel("ask for a layer"))?;
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    });
    let stream = stream.map_err(EngineError::kernel("ask for a layer"))?;
    let disk_mib = sandbox.build.disk_mib;
    let unpack = move || guest::unpack_layer(stream, &target, disk_mib);
    let unpacked = tokio::task::spawn_blocking(unpack).await;
    let unpacked = unpacked.map_err(|_| EngineError::Capture("the export was interrupted".into()))?;
    unpacked.map_err(|error| EngineError::Capture(error.to_string()))
}
