//! Writes the snapshot of a stopped VM: memory and devices, then the disk, then the record.
//!
//! Memory is read page by page (`memory`). Where the host does not permit that, QEMU sends all of
//! it as a migration stream, which is slower and shares no blocks with other snapshots. What was
//! written of a snapshot that fails is removed.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{Durability, EngineError, Sandbox};
use engine_host::{tree_error, tree_of};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tracing::warn;

use crate::disks::DEVICES_ROOM_MIB;
use crate::host::Host;
use crate::lease::Lease;
use crate::sandbox::MicrovmSandbox;
use crate::snapshot::memory;
use crate::snapshot::{MemoryRecord, SnapshotFiles, SnapshotRecord};
use crate::vm::command_line::{DEVICES_FILE, MEMORY_FILE, VM_DIR};

/// Socket in the sandbox's own directory that QEMU sends its memory to.
const STREAM: &str = "stream";
/// Time limit for the stream of a VM, for each GiB of its memory.
const STREAM_TIMEOUT_PER_GIB: Duration = Duration::from_secs(60);
/// Maximum size of the file of devices, bytes; usually it has some hundred kilobytes.
const MAX_DEVICES_BYTES: u64 = (DEVICES_ROOM_MIB as u64) << 20;
/// Maximum size of a stream beyond the memory, bytes: devices, and a header for each page.
const MAX_STREAM_OVERHEAD: u64 = 256 << 20;

/// Writes the snapshot of a stopped VM; returns the bytes in pages that were private to QEMU.
///
/// # Errors
/// The disk has no room, or QEMU does not save its devices.
pub(crate) async fn write_snapshot(
    sandbox: &Arc<MicrovmSandbox>,
    snapshot: &SnapshotFiles,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let lease = sandbox.lease()?;
    let written = write_parts(sandbox, &lease, snapshot, with_memory, durability).await.map_err(|error| {
        let words =
            "the disk has no room for the captured snapshot; free some space or capture without memory";
        if is_no_room(&error) { EngineError::Exhausted(words.into()) } else { error }
    });
    if written.is_err() {
        let snapshot = snapshot.clone();
        let _ = blocking(move || snapshot.discard(&lease.host)).await;
    }
    written
}

async fn write_parts(
    sandbox: &Arc<MicrovmSandbox>,
    lease: &Arc<Lease>,
    snapshot: &SnapshotFiles,
    with_memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let (held_lease, left_over) = (lease.clone(), snapshot.clone());
    // Left over by a server that was killed while it wrote this very snapshot.
    blocking(move || left_over.discard(&held_lease.host)).await?;
    let memory =
        if with_memory { Some(write_memory(sandbox, lease, snapshot, durability).await?) } else { None };
    let (held_lease, sandbox, snapshot) = (lease.clone(), sandbox.clone(), snapshot.clone());
    let finish = move || {
        let host = &held_lease.host;
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
        snapshot.commit(&record, durability).map_err(EngineError::kernel("write the record of the snapshot"))
    };
    blocking(finish).await?;
    Ok(memory.map_or(0, |memory| memory.own_bytes))
}

async fn write_memory(
    sandbox: &Arc<MicrovmSandbox>,
    lease: &Arc<Lease>,
    snapshot: &SnapshotFiles,
    durability: Durability,
) -> Result<MemoryRecord, EngineError> {
    let (held_lease, tree) = (lease.clone(), snapshot.memory.clone());
    let room = blocking(move || {
        let room = check_room(&held_lease)?;
        held_lease.host.trees.create(&tree, None).map_err(tree_error("create a tree for the memory"))?;
        Ok(room)
    })
    .await?;
    if !lease.host.stream_memory {
        match write_pages(sandbox, lease, snapshot, room, durability).await {
            Ok(own_bytes) => return Ok(MemoryRecord { own_bytes, is_stream: false }),
            Err(error) if is_no_room(&error) => return Err(error),
            Err(error) => {
                warn!(%error, "failed to read the memory page by page; QEMU sends all of it as a stream");
            }
        }
    }
    let own_bytes = receive_stream(sandbox, &lease.host, snapshot, durability).await?;
    Ok(MemoryRecord { own_bytes, is_stream: true })
}

fn is_no_room(error: &EngineError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, EngineError::Kernel { source, .. } if full.contains(&source.kind()))
}

async fn write_pages(
    sandbox: &Arc<MicrovmSandbox>,
    lease: &Arc<Lease>,
    snapshot: &SnapshotFiles,
    room: FreeRoom,
    durability: Durability,
) -> Result<u64, EngineError> {
    sandbox.vm.monitor.save_devices(&format!("/{VM_DIR}/{DEVICES_FILE}")).await?;
    let (pid, devices) = (sandbox.pid, sandbox.private_dir().join(DEVICES_FILE));
    let dir = lease.host.trees.path(&snapshot.memory);
    let memory_bytes = u64::from(sandbox.vm_spec.size.memory_mib) << 20;
    let is_image_quick_enough = durability == Durability::Ephemeral || room == FreeRoom::ForImage;
    let journal = snapshot.journal.clone().filter(|_| !is_image_quick_enough);
    let write = move || {
        let own =
            memory::write_image(pid, memory_bytes, &dir.join(MEMORY_FILE), journal.as_deref(), durability)?;
        let (from, mut to) = (fs::File::open(devices)?, fs::File::create(dir.join(DEVICES_FILE))?);
        // QEMU can write to this file and may have been taken over.
        if io::copy(&mut from.take(MAX_DEVICES_BYTES), &mut to)? == MAX_DEVICES_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        durability.sync(&to)?;
        make_readable_by_qemu(&dir, &[MEMORY_FILE, DEVICES_FILE], durability)?;
        io::Result::Ok(own)
    };
    blocking(move || write().map_err(EngineError::kernel("write the memory image"))).await
}

/// Receives memory and devices as a migration stream; returns its length.
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
    let timeout = STREAM_TIMEOUT_PER_GIB * sandbox.vm_spec.size.memory_mib.div_ceil(1024);
    let uid = sandbox.lease()?.uid_base;
    let receive = async {
        let listener = UnixListener::bind(&socket)?;
        chown(&socket, Some(uid), Some(uid))?;
        let path = format!("/{VM_DIR}/{STREAM}");
        sandbox.vm.monitor.migrate_to_socket(&path).await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        let mut file = File::create(dir.join(DEVICES_FILE)).await?;
        let mut limited = stream.take(memory_bytes + MAX_STREAM_OVERHEAD);
        let length = tokio::io::copy(&mut limited, &mut file).await?;
        file.flush().await?;
        if durability == Durability::Durable {
            file.sync_all().await?;
        }
        io::Result::Ok(length)
    };
    let received = tokio::time::timeout(timeout, receive).await;
    let _ = fs::remove_file(&socket);
    let length = received
        .map_err(|_| EngineError::Timeout("receiving the memory stream"))?
        .map_err(EngineError::kernel("write the memory stream"))?;
    sandbox.vm.monitor.check_migration_completed().await?;
    let show = move || make_readable_by_qemu(&dir, &[DEVICES_FILE], durability);
    blocking(move || show().map_err(EngineError::kernel("write the memory stream"))).await?;
    Ok(length)
}

/// Makes files readable for QEMU processes, each of which runs as a user of its own.
fn make_readable_by_qemu(dir: &Path, files: &[&str], durability: Durability) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    files
        .iter()
        .try_for_each(|file| fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o444)))?;
    durability.sync(&fs::File::open(dir)?)
}

/// What the disk has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FreeRoom {
    /// For the image, but not for a journal beside it.
    ForImage,
    /// For the image and a journal: for a while the pages are in both.
    ForJournalAndImage,
}

/// Checks that the memory fits on the disk.
///
/// # Errors
/// [`EngineError::Exhausted`] if there is too little room.
fn check_room(lease: &Lease) -> Result<FreeRoom, EngineError> {
    let room = lease.host.check_memory_room(&lease.group, 0)?;
    Ok(if room.needed <= room.free / 2 { FreeRoom::ForJournalAndImage } else { FreeRoom::ForImage })
}

/// Runs `work` on a thread where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| EngineError::Capture("the capture was interrupted".into()))?
}
