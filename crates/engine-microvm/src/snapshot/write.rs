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
use engine_host::{tree_error, tree_of};
use layers::room_beside;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tracing::warn;

use crate::claim::Claim;
use crate::disks::DEVICES_ROOM_MIB;
use crate::host::Host;
use crate::sandbox::MicrovmSandbox;
use crate::snapshot::memory;
use crate::snapshot::{MemoryRecord, SnapshotFiles, SnapshotRecord};
use crate::vm::command_line::{DEVICES_FILE, MEMORY_FILE, VM_DIR};

/// The socket that QEMU sends its memory to, in the sandbox's own directory.
const STREAM: &str = "stream";
/// Time for all of a machine's memory to arrive, for each GiB of it.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);
/// What the state of devices takes at most, bytes; it is some hundred kilobytes.
const MAX_DEVICES: u64 = (DEVICES_ROOM_MIB as u64) << 20;
/// What a stream may have beyond the machine's memory, bytes: devices, and a frame around every page.
const BESIDE_MEMORY: u64 = 256 << 20;

/// Writes the state of a stopped machine; returns how much of the memory was its own, in bytes.
pub(crate) async fn write_snapshot(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let claim = sandbox.claim()?;
    let saved = write_parts(sandbox, &claim, snapshot, with_memory, durability).await.map_err(|error| {
        let words =
            "the disk has no room for the captured snapshot; free some space or capture without memory";
        if is_no_room(&error) { EngineError::Exhausted(words.into()) } else { error }
    });
    if saved.is_err() {
        let snapshot = snapshot.clone();
        let _ = blocking(move || snapshot.discard(&claim.host)).await;
    }
    saved
}

async fn write_parts(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    snapshot: &SnapshotFiles,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let (held, remains) = (claim.clone(), snapshot.clone());
    // Remains of a server that was killed at this very point.
    blocking(move || remains.discard(&held.host)).await?;
    let memory =
        if with_memory { Some(write_memory(sandbox, claim, snapshot, durability).await?) } else { None };
    let (held, sandbox, snapshot) = (claim.clone(), sandbox.clone(), snapshot.clone());
    let finish = move || {
        let host = &held.host;
        host.trees
            .copy(&tree_of(&sandbox.id), &snapshot.disk, true, None)
            .map_err(tree_error("capture the disk"))?;
        let vm_spec = &sandbox.vm_spec;
        let record = SnapshotRecord {
            base: vm_spec.base.clone(),
            layers: vm_spec.layers.clone(),
            size: vm_spec.size,
            disk_mib: vm_spec.disk_mib,
            memory,
            compatibility: host.compatibility(),
        };
        snapshot.commit(&record, durability).map_err(EngineError::kernel("record the captured state"))
    };
    blocking(finish).await?;
    Ok(memory.map_or(0, |memory| memory.own_bytes))
}

async fn write_memory(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    snapshot: &SnapshotFiles,
    durability: Durability,
) -> Result<MemoryRecord, EngineError> {
    let (held, tree) = (claim.clone(), snapshot.memory.clone());
    let room = blocking(move || {
        let room = check_room(&held)?;
        held.host.trees.create(&tree, None).map_err(tree_error("make a tree for the memory"))?;
        Ok(room)
    })
    .await?;
    if !claim.host.stream_memory {
        match write_pages(sandbox, claim, snapshot, room, durability).await {
            Ok(own_bytes) => return Ok(MemoryRecord { own_bytes, is_stream: false }),
            Err(error) if is_no_room(&error) => return Err(error),
            Err(error) => {
                warn!(%error, "a machine's memory cannot be taken page by page: it sends all of it");
            }
        }
    }
    let own_bytes = receive_stream(sandbox, &claim.host, snapshot, durability).await?;
    Ok(MemoryRecord { own_bytes, is_stream: true })
}

fn is_no_room(error: &EngineError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, EngineError::Kernel { source, .. } if full.contains(&source.kind()))
}

async fn write_pages(
    sandbox: &Arc<MicrovmSandbox>,
    claim: &Arc<Claim>,
    snapshot: &SnapshotFiles,
    room: FreeRoom,
    durability: Durability,
) -> Result<u64, EngineError> {
    sandbox.vm.monitor.save_devices(&format!("/{VM_DIR}/{DEVICES_FILE}")).await?;
    let (pid, devices) = (sandbox.pid, sandbox.private_dir().join(DEVICES_FILE));
    let dir = claim.host.trees.path(&snapshot.memory);
    let memory_bytes = u64::from(sandbox.vm_spec.size.memory_mib) << 20;
    let is_soon_enough = durability == Durability::Ephemeral || room == FreeRoom::ForImage;
    let journal = snapshot.journal.clone().filter(|_| !is_soon_enough);
    let write = move || {
        let own =
            memory::write_image(pid, memory_bytes, &dir.join(MEMORY_FILE), journal.as_deref(), durability)?;
        let (from, mut to) = (fs::File::open(devices)?, fs::File::create(dir.join(DEVICES_FILE))?);
        // The file is QEMU's, which may have been taken over.
        if io::copy(&mut from.take(MAX_DEVICES), &mut to)? == MAX_DEVICES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        durability.sync(&to)?;
        make_readable_by_qemu(&dir, &[MEMORY_FILE, DEVICES_FILE], durability)?;
        io::Result::Ok(own)
    };
    blocking(move || write().map_err(EngineError::kernel("write the memory image"))).await
}

/// Returns how many bytes came.
async fn receive_stream(
    sandbox: &Arc<MicrovmSandbox>,
    host: &Host,
    snapshot: &SnapshotFiles,
    durability: Durability,
) -> Result<u64, EngineError> {
    let dir = host.trees.path(&snapshot.memory);
    let socket = sandbox.private_dir().join(STREAM);
    let _ = fs::remove_file(&socket);
    let memory_bytes = u64::from(sandbox.vm_spec.size.memory_mib) << 20;
    let patience = STREAM_PATIENCE * sandbox.vm_spec.size.memory_mib.div_ceil(1024);
    let uid = sandbox.claim()?.uid_base;
    let receive = async {
        let listener = UnixListener::bind(&socket)?;
        chown(&socket, Some(uid), Some(uid))?;
        let place = format!("/{VM_DIR}/{STREAM}");
        sandbox.vm.monitor.migrate_to_socket(&place).await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        let mut file = File::create(dir.join(DEVICES_FILE)).await?;
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
    sandbox.vm.monitor.check_migration_completed().await?;
    let show = move || make_readable_by_qemu(&dir, &[DEVICES_FILE], durability);
    blocking(move || show().map_err(EngineError::kernel("write the memory down"))).await?;
    Ok(length)
}

/// Machines run as users of their own and only read these.
fn make_readable_by_qemu(dir: &Path, files: &[&str], durability: Durability) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    files
        .iter()
        .try_for_each(|file| fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o444)))?;
    durability.sync(&fs::File::open(dir)?)
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FreeRoom {
    ForImage,
    /// For pages that are in both for a while.
    ForJournalAndImage,
}

/// A memory image must not take the last of a disk that trees lie on: no sandbox of this server would survive that.
fn check_room(claim: &Claim) -> Result<FreeRoom, EngineError> {
    let used = claim.group.stats().map_err(EngineError::kernel("read statistics"))?.memory_bytes;
    let room = room_beside(&claim.host.snapshots)
        .map_err(EngineError::kernel("look for room for the memory image"))?;
    if used <= room {
        return Ok(if used <= room / 2 { FreeRoom::ForJournalAndImage } else { FreeRoom::ForImage });
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
