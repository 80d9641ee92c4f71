//! Capturing snapshots: stop the VM, write the snapshot, resume the VM. Boot snapshots of templates
//! are captured in the same way.
//!
//! Also exports the files that a sandbox changed as a layer; the guest sends the content. Afterwards,
//! also after an error, the sandbox runs, or stays frozen, as before.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Durability, EngineError, Sandbox, SnapshotInfo};
use guest_api::relay::RelayRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sandbox::MicrovmSandbox;
use crate::snapshot::SnapshotFiles;
use crate::snapshot::write::write_snapshot;

/// Time limit for the first answer of a freshly booted envd.
const ENVD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time that a freshly booted guest is given to become idle.
const MAX_IDLE_WAIT: Duration = Duration::from_secs(5);
/// Interval over which processor time is measured to tell whether a guest is idle.
const IDLE_WINDOW: Duration = Duration::from_millis(500);
const NOT_QUIESCED: &str = "not all processes could be stopped in time, and a copy of them would run before it has randomness of its own; \
                        try again, or without memory";

/// Captures a sandbox as `snapshot`, with its memory if asked for.
///
/// # Errors
/// The guest did not freeze user code, the snapshot cannot be written, or the disk is full. The
/// sandbox is resumed, or stays frozen if it was.
pub(crate) async fn capture(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
    memory: bool,
    durability: Durability,
) -> Result<SnapshotInfo, EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let started = Instant::now();
    let lease = sandbox.lease()?;
    if *frozen {
        // QEMU itself must run to save its devices; the virtual processors stay stopped.
        lease.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
    } else {
        sandbox.stop_vm().await?;
    }
    let written = if memory && !sandbox.is_quiesced() {
        Err(EngineError::Uncapturable(NOT_QUIESCED.to_owned()))
    } else {
        write_snapshot(sandbox, snapshot, memory, durability).await
    };
    let stopped = started.elapsed();
    if *frozen {
        lease.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.resume_vm().await?;
    }
    if written.is_ok() && durability == Durability::Durable {
        lease.host.journal_replayer.add(snapshot, snapshot.image(&lease.host));
    }
    let memory_bytes = written.map_err(EngineError::in_capture)?;
    Ok(SnapshotInfo { memory, memory_bytes, stopped })
}

/// Captures a booted guest that has no owner as the boot snapshot of its template, and returns how
/// long that took. The guest stays stopped.
///
/// # Errors
/// envd does not answer, the guest cannot freeze user code, or the snapshot cannot be written.
pub(crate) async fn capture_boot_snapshot(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
) -> Result<Duration, EngineError> {
    let started = Instant::now();
    // Answering a request loads envd's code and libraries into memory.
    match tokio::time::timeout(ENVD_TIMEOUT, check_health(sandbox)).await {
        Ok(answer) => answer.map_err(EngineError::kernel("ask for envd's health"))?,
        Err(_) => return Err(EngineError::Timeout("waiting for the first answer of envd")),
    }
    wait_until_idle(sandbox).await?;
    sandbox.vm.guest_agent.quiesce().await.map_err(EngineError::Capture)?;
    sandbox.vm.monitor.stop().await?;
    write_snapshot(sandbox, snapshot, true, Durability::Durable).await?;
    Ok(started.elapsed())
}

/// Waits, for a limited time, until the guest uses next to no processor time. What a kernel defers
/// until after its boot would otherwise be done again by every clone, before its first answer.
async fn wait_until_idle(sandbox: &MicrovmSandbox) -> Result<(), EngineError> {
    let lease = sandbox.lease()?;
    let used = || lease.group.stats().map(|stats| Duration::from_micros(stats.cpu_usec));
    let mut before = used().map_err(EngineError::kernel("read statistics"))?;
    let end = Instant::now() + MAX_IDLE_WAIT;
    while Instant::now() < end {
        tokio::time::sleep(IDLE_WINDOW).await;
        let now = used().map_err(EngineError::kernel("read statistics"))?;
        if now.saturating_sub(before) < IDLE_WINDOW / 20 {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

async fn check_health(sandbox: &MicrovmSandbox) -> std::io::Result<()> {
    let mut stream = sandbox.dial(envd_api::PORT).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.") { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Writes what a sandbox changed in its template's files to the directory `target`, as a layer. The
/// guest sends the data, which is untrusted.
///
/// # Errors
/// The guest does not send a valid layer within its limits, or the disk is full.
pub(crate) async fn export_layer(sandbox: &Arc<MicrovmSandbox>, target: PathBuf) -> Result<(), EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let lease = sandbox.lease()?;
    if *frozen {
        // User code stays frozen.
        lease.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
        sandbox.vm.monitor.cont().await?;
    } else {
        sandbox.vm.guest_agent.quiesce().await.map_err(EngineError::Capture)?;
    }
    let exported = receive_layer(sandbox, target).await;
    if *frozen {
        sandbox.vm.monitor.stop().await?;
        lease.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.vm.guest_agent.resume().await.map_err(EngineError::Capture)?;
    }
    exported
}

async fn receive_layer(sandbox: &MicrovmSandbox, target: PathBuf) -> Result<(), EngineError> {
    let stream = sandbox
        .open_relay(RelayRequest::Export)
        .await
        .map_err(EngineError::kernel("request the layer from the guest"))?;
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    });
    let stream = stream.map_err(EngineError::kernel("request the layer from the guest"))?;
    let disk_mib = sandbox.vm_spec.disk_mib;
    let unpack = move || guest::unpack_layer(stream, &target, disk_mib);
    let unpacked = tokio::task::spawn_blocking(unpack).await;
    let unpacked = unpacked.map_err(|_| EngineError::Capture("the export was interrupted".into()))?;
    unpacked.map_err(|error| EngineError::Capture(error.to_string()))
}
