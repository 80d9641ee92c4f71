//! SnapshotInfo states of machines: stop, write everything down (`save`), go on.
//! A template's warm start is captured in the same way, a layer for a build is asked of the guest.
//! The sandbox stands still meanwhile and is then as it was, also when this fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Durability, EngineError, Sandbox, SnapshotInfo};
use guest_api::relay::RelayRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sandbox::MicrovmSandbox;
use crate::snapshot::SnapshotFiles;
use crate::snapshot::write::write_snapshot;

/// Time for a freshly booted envd to answer.
const WARM_PATIENCE: Duration = Duration::from_secs(30);
/// Most time for a freshly booted guest to come to rest, and how long it must have done next to nothing.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);
const SETTLE_WINDOW: Duration = Duration::from_millis(500);
const RESTLESS: &str = "not all processes could be stopped in time, and a copy of them would run before it has randomness of its own; \
                        try again, or without memory";
const ENVD_PORT: u16 = guest_api::ENVD_PORT;

/// Captures a sandbox as `state`.
pub(crate) async fn capture(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
    memory: bool,
    durability: Durability,
) -> Result<SnapshotInfo, EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let begun = Instant::now();
    let claim = sandbox.claim()?;
    if *frozen {
        // QEMU itself must run to save its devices; the virtual processors stay stopped.
        claim.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
    } else {
        sandbox.stop_vm().await?;
    }
    let saved = if memory && !sandbox.is_quiesced() {
        Err(EngineError::Capture(RESTLESS.into()))
    } else {
        write_snapshot(sandbox, snapshot, memory, durability).await
    };
    let stopped = begun.elapsed();
    if *frozen {
        claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.resume_vm().await?;
    }
    if saved.is_ok() && durability == Durability::Durable {
        claim.host.journal_replayer.add(snapshot, snapshot.image(&claim.host));
    }
    let memory_bytes = saved.map_err(|error| match error {
        EngineError::Capture(_) => error,
        other => EngineError::Capture(other.to_string()),
    })?;
    Ok(SnapshotInfo { memory, memory_bytes, stopped })
}

/// Captures a booted guest, which is nobody's sandbox, as its template's warm start; it stays stopped. Answers how long it took.
pub(crate) async fn keep_as_warm_start(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
) -> Result<Duration, EngineError> {
    let begun = Instant::now();
    // An answered request is what makes the agent's code and its libraries be in memory.
    match tokio::time::timeout(WARM_PATIENCE, ask_health(sandbox)).await {
        Ok(answer) => answer.map_err(EngineError::kernel("ask envd how it is"))?,
        Err(_) => return Err(EngineError::Timeout("the first answer of envd")),
    }
    settle(sandbox).await?;
    sandbox.vm.guest_agent.quiesce().await.map_err(EngineError::Capture)?;
    sandbox.vm.monitor.stop().await?;
    write_snapshot(sandbox, snapshot, true, Durability::Durable).await?;
    Ok(begun.elapsed())
}

/// Waits, for a limited time, until the guest has nothing to do: what a kernel puts off until after its boot would be done by every clone
/// again, before it answers.
async fn settle(sandbox: &MicrovmSandbox) -> Result<(), EngineError> {
    let claim = sandbox.claim()?;
    let used = || claim.group.stats().map(|stats| Duration::from_micros(stats.cpu_usec));
    let mut before = used().map_err(EngineError::kernel("read statistics"))?;
    let end = Instant::now() + SETTLE_PATIENCE;
    while Instant::now() < end {
        tokio::time::sleep(SETTLE_WINDOW).await;
        let now = used().map_err(EngineError::kernel("read statistics"))?;
        if now.saturating_sub(before) < SETTLE_WINDOW / 20 {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

async fn ask_health(sandbox: &MicrovmSandbox) -> std::io::Result<()> {
    let mut stream = sandbox.dial(ENVD_PORT).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.") { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Writes what a sandbox changed of its template into `target`, as a layer. The guest sends it; what comes is treated as hostile.
pub(crate) async fn export_layer(sandbox: &Arc<MicrovmSandbox>, target: PathBuf) -> Result<(), EngineError> {
    let frozen = sandbox.frozen.lock().await;
    let claim = sandbox.claim()?;
    if *frozen {
        // Its user code stays stopped.
        claim.group.set_frozen(false).await.map_err(EngineError::kernel("wake QEMU"))?;
        sandbox.vm.monitor.cont().await?;
    } else {
        sandbox.vm.guest_agent.quiesce().await.map_err(EngineError::Capture)?;
    }
    let exported = receive(sandbox, target).await;
    if *frozen {
        sandbox.vm.monitor.stop().await?;
        claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    } else {
        sandbox.vm.guest_agent.resume().await.map_err(EngineError::Capture)?;
    }
    exported
}

async fn receive(sandbox: &MicrovmSandbox, target: PathBuf) -> Result<(), EngineError> {
    let stream = sandbox.relay(RelayRequest::Export).await.map_err(EngineError::kernel("ask for a layer"))?;
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    });
    let stream = stream.map_err(EngineError::kernel("ask for a layer"))?;
    let disk_mib = sandbox.vm_spec.disk_mib;
    let unpack = move || guest::unpack_layer(stream, &target, disk_mib);
    let unpacked = tokio::task::spawn_blocking(unpack).await;
    let unpacked = unpacked.map_err(|_| EngineError::Capture("the export was interrupted".into()))?;
    unpacked.map_err(|error| EngineError::Capture(error.to_string()))
}
