//! Writing a stopped machine down as a state: memory and devices, disk, and last the note that makes a state of them.
//! Memory is taken page by page (`memory`). Where the host does not let us look at them, QEMU sends all of it as a stream: slower, and
//! nothing of it is shared with other states.
//! What was written of a state that could not be finished is removed.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{Durability, EngineError, Sandbox};
use engine_host::{volume_error, volume_of};
use layers::room_beside;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tracing::warn;

use crate::claim::Claim;
use crate::disks::BESIDE_DISK_MIB;
use crate::host::Host;
use crate::machine::command::{DEVICES, GUEST_MEMORY, OWN};
use crate::memory;
use crate::sandbox::MicrovmSandbox;
use crate::state::{Memory, Meta, State};

/// The socket that QEMU sends its memory to, in the sandbox's own directory.
const STREAM: &str = "stream";
/// Time for all of a machine's memory to arrive, for each GiB of it.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);
/// What the state of devices takes at most, bytes; it is some hundred kilobytes.
const MAX_DEVICES: u64 = (BESIDE_DISK_MIB as u64) << 20;
/// What a stream may have beyond the machine's memory, bytes: devices, and a frame around every page.
const BESIDE_MEMORY: u64 = 256 << 20;

/// Writes the state of a stopped machine; returns how much of the memory was its own, in bytes.
pub(crate) async fn save(
    sandbox: &Arc<MicrovmSandbox>,
    state: &State,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let claim = sandbox.claim()?;
    let saved = save_parts(sandbox, &claim, state, with_memory, durability).await.map_err(|error| {
        let words = "the disk has no room for the captured state; free some space or capture without memory";
        if is_no_room(&error) { EngineError::Exhausted(words.into()) } else { error }
    });
    if saved.is_err() {
        let state = state.clone();
        let _ = blocking(move || state.discard(&claim.host)).await;
    }
    saved
}

async fn save_parts(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    state: &State,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let (held, remains) = (claim.clone(), state.clone());
    // Remains of a server that was killed at this very point.
    blocking(move || remains.discard(&held.host)).await?;
    let memory = if with_memory { Some(save_memory(sandbox, claim, state, durability).await?) } else { None };
    let (held, sandbox, state) = (claim.clone(), sandbox.clone(), state.clone());
    let finish = move || {
        let host = &held.host;
        host.volumes
            .copy(&volume_of(&sandbox.id), &state.disk, true, None)
            .map_err(volume_error("capture the disk"))?;
        let build = &sandbox.build;
        let meta = Meta {
            base: build.base.clone(),
            layers: build.layers.clone(),
            shape: build.shape,
            disk_mib: build.disk_mib,
            memory,
            compatibility: host.compatibility(),
        };
        state.commit(&meta, durability).map_err(EngineError::kernel("record the captured state"))
    };
    blocking(finish).await?;
    Ok(memory.map_or(0, |memory| memory.own_bytes))
}

async fn save_memory(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    state: &State,
    durability: Durability,
) -> Result<Memory, EngineError> {
    let (held, volume) = (claim.clone(), state.memory.clone());
    let room = blocking(move || {
        let room = check_room(&held)?;
        held.host.volumes.create(&volume, None).map_err(volume_error("make a volume for the memory"))?;
        Ok(room)
    })
    .await?;
    if !claim.host.streams_memory {
        match save_pages(sandbox, claim, state, room, durability).await {
            Ok(own_bytes) => return Ok(Memory { own_bytes, is_stream: false }),
            Err(error) if is_no_room(&error) => return Err(error),
            Err(error) => {
                warn!(%error, "a machine's memory cannot be taken page by page: it sends all of it");
            }
        }
    }
    let own_bytes = receive_stream(sandbox, &claim.host, state, durability).await?;
    Ok(Memory { own_bytes, is_stream: true })
}

fn is_no_room(error: &EngineError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, EngineError::Kernel { source, .. } if full.contains(&source.kind()))
}

async fn save_pages(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    state: &State,
    room: Room,
    durability: Durability,
) -> Result<u64, EngineError> {
    sandbox.machine.monitor.save_devices(&format!("/{OWN}/{DEVICES}")).await?;
    let (pid, devices) = (sandbox.pid, sandbox.private_dir().join(DEVICES));
    let dir = claim.host.volumes.path(&state.memory);
    let memory_bytes = u64::from(sandbox.build.shape.memory_mib) << 20;
    let is_soon_enough = durability == Durability::Ephemeral || room == Room::ForImage;
    let journal = state.journal.clone().filter(|_| !is_soon_enough);
    let write = move || {
        let own = memory::save(pid, memory_bytes, &dir.join(GUEST_MEMORY), journal.as_deref(), durability)?;
        let (from, mut to) = (fs::File::open(devices)?, fs::File::create(dir.join(DEVICES))?);
        // The file is QEMU's, which may have been taken over.
        if io::copy(&mut from.take(MAX_DEVICES), &mut to)? == MAX_DEVICES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        durability.sync(&to)?;
        show_to_machines(&dir, &[GUEST_MEMORY, DEVICES], durability)?;
        io::Result::Ok(own)
    };
    blocking(move || write().map_err(EngineError::kernel("write the memory image"))).await
}

/// Returns how many bytes came.
async fn receive_stream(
    sandbox: &Arc<MicrovmSandbox>,
    host: &Host,
    state: &State,
    durability: Durability,
) -> Result<u64, EngineError> {
    let dir = host.volumes.path(&state.memory);
    let socket = sandbox.private_dir().join(STREAM);
    let _ = fs::remove_file(&socket);
    let memory_bytes = u64::from(sandbox.build.shape.memory_mib) << 20;
    let patience = STREAM_PATIENCE * sandbox.build.shape.memory_mib.div_ceil(1024);
    let uid = sandbox.claim()?.uid_base;
    let receive = async {
        let listener = UnixListener::bind(&socket)?;
        chown(&socket, Some(uid), Some(uid))?;
        let place = format!("/{OWN}/{STREAM}");
        sandbox.machine.monitor.send_everything(&place).await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        let mut file = File::create(dir.join(DEVICES)).await?;
        let mut limited = stream.take(memory_bytes + BESIDE_MEMORY);
        let length = tokio::io::copy(&mut limited, &mut file).await?;
        file.flush().await?;
        if durability == Durability::Durable {
            file.sync_all().await?;
        }
        io::Result::Ok(length)
    };
    let received = tokio::time::timeout(patience, receive).await;
    let _ = fs::remove_file(&socket);
    let length = received
        .map_err(|_| EngineError::Timeout("sending the memory"))?
        .map_err(EngineError::kernel("write the memory down"))?;
    sandbox.machine.monitor.was_everything_sent().await?;
    let show = move || show_to_machines(&dir, &[DEVICES], durability);
    blocking(move || show().map_err(EngineError::kernel("write the memory down"))).await?;
    Ok(length)
}

/// Machines run as users of their own and only read these.
fn show_to_machines(dir: &Path, files: &[&str], durability: Durability) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    files
        .iter()
        .try_for_each(|file| fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o444)))?;
    durability.sync(&fs::File::open(dir)?)
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    ForImage,
    /// For pages that are in both for a while.
    ForJournalAndImage,
}

/// A memory image must not take the last of a disk that volumes lie on: no sandbox of this server would survive that.
fn check_room(claim: &Claim) -> Result<Room, EngineError> {
    let used = claim.group.stats().map_err(EngineError::kernel("read statistics"))?.memory_bytes;
    let room = room_beside(&claim.host.snapshots)
        .map_err(EngineError::kernel("look for room for the memory image"))?;
    if used <= room {
        return Ok(if used <= room / 2 { Room::ForJournalAndImage } else { Room::ForImage });
    }
    Err(EngineError::Exhausted(format!(
        "its memory takes up to {} MiB and the disk of captured states has {} to give; free some space or capture without memory",
        used >> 20,
        room >> 20
    )))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| EngineError::Capture("the capture was interrupted".into()))?
}
