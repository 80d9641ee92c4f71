//! Snapshots on disk: a disk, the memory if it was captured, and a record. A template's boot snapshot
//! is a snapshot, too.
//!
//! The record is written last and removed first, so an incomplete snapshot does not exist.
//! Snapshots do not depend on each other, and any number of VMs can be restored from one. Pages
//! that the memory image does not have yet are in the snapshot's journal.

pub(crate) mod image_compressor;
pub(crate) mod journal_replayer;
pub(crate) mod memory;
pub(crate) mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use engine::{Durability, EngineError, SnapshotId};
use engine_host::{snapshot_tree, tree_error};
use layers::TreeName;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::vm::command_line::{MEMORY_FILE, VmSize};

/// The memory of a snapshot.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct MemoryRecord {
    /// Bytes in pages that were private to QEMU: changed since the guest's start.
    pub(crate) own_bytes: u64,
    /// Whether memory and devices are one migration stream, instead of an image and a file of
    /// devices.
    pub(crate) is_stream: bool,
}

/// The record of a snapshot: what a restore must know about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Key of its base image.
    pub(crate) base: String,
    /// Layers of the template, to build the base image again.
    pub(crate) layers: Vec<PathBuf>,
    /// Processors and memory of the guest.
    #[serde(rename = "shape")]
    pub(crate) size: VmSize,
    /// Size of the private disk, MiB.
    pub(crate) disk_mib: u32,
    /// `None` in a disk snapshot.
    pub(crate) memory: Option<MemoryRecord>,
    /// [`Host::compatibility`] of the server that captured the memory.
    pub(crate) compatibility: String,
}

/// The places of one snapshot: record, journal and two writable trees.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFiles {
    record_path: PathBuf,
    /// Path of the journal, with pages that the memory image may not have yet. `None` for boot
    /// snapshots, whose capture nobody waits for.
    pub(crate) journal: Option<PathBuf>,
    /// The tree with the disk.
    pub(crate) disk: TreeName,
    /// The tree with memory and devices.
    pub(crate) memory: TreeName,
}

impl SnapshotFiles {
    /// The snapshot of a sandbox with this id.
    pub(crate) fn of_snapshot(host: &Host, id: SnapshotId) -> Self {
        let [record_path, journal] = file_names(id).map(|name| host.snapshots.join(name));
        Self { journal: Some(journal), ..Self::at(record_path, snapshot_tree(id)) }
    }

    /// The boot snapshot with this key.
    pub(crate) fn of_boot_snapshot(host: &Host, key: &str) -> Self {
        let disk = format!("t-{key}").parse().expect("keys are hexadecimal digits");
        Self::at(host.boot_snapshots.dir().join(format!("{key}.json")), disk)
    }

    fn at(record_path: PathBuf, disk: TreeName) -> Self {
        let memory = memory_tree(&disk);
        Self { record_path, journal: None, disk, memory }
    }

    /// Whether the snapshot exists.
    pub(crate) fn exists(&self) -> bool {
        self.record_path.exists()
    }

    /// Path of the memory image; there is no such file without memory or with a stream.
    pub(crate) fn image(&self, host: &Host) -> PathBuf {
        host.trees.path(&self.memory).join(MEMORY_FILE)
    }

    /// Replays the journal into the memory image. Does nothing without a journal. Blocks.
    ///
    /// # Errors
    /// The disk is full, or the journal is damaged.
    pub(crate) fn replay(&self, host: &Host) -> Result<(), EngineError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        memory::replay(journal, &self.image(host), &|| true).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::Exhausted(
                "the disk has no room for the image of its memory; free some space or start it without memory".into(),
            ),
            _ => EngineError::Restore(format!("the journal of its memory cannot be replayed: {error}")),
        })
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if the snapshot does not exist; or the record is damaged.
    pub(crate) fn record(&self) -> Result<SnapshotRecord, EngineError> {
        read_record(&self.record_path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => EngineError::NotFound,
            _ => EngineError::Restore(format!("its record is damaged: {error}")),
        })
    }

    /// Writes the record, which makes the snapshot exist; everything else is written before.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn commit(&self, record: &SnapshotRecord, durability: Durability) -> io::Result<()> {
        let options = fs_atomic::Options::DEFAULT.sync(durability == Durability::Durable);
        fs_atomic::write_json(&self.record_path, record, options)
    }

    /// Removes the snapshot, or the part of one that exists.
    ///
    /// # Errors
    /// A file or tree cannot be removed.
    pub(crate) fn discard(&self, host: &Host) -> Result<(), EngineError> {
        for file in [Some(&self.record_path), self.journal.as_ref()].into_iter().flatten() {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(EngineError::Kernel { step: "remove a snapshot", source: error });
                }
                _ => {}
            }
        }
        for tree in [&self.memory, &self.disk] {
            host.trees.discard(tree).map_err(tree_error("remove the trees of a snapshot"))?;
        }
        Ok(())
    }
}

/// Names of the record and the journal of a snapshot.
pub(crate) fn file_names(id: SnapshotId) -> [String; 2] {
    [format!("{id}.json"), format!("{id}.pages")]
}

/// Name of the tree with the memory that belongs to the disk in tree `disk`.
pub(crate) fn memory_tree(disk: &TreeName) -> TreeName {
    format!("m-{disk}").parse().expect("two letters more than a short name")
}

/// Reads the record of a snapshot.
pub(crate) fn read_record(record_path: &Path) -> io::Result<SnapshotRecord> {
    Ok(serde_json::from_slice(&fs::read(record_path)?)?)
}
