//! SnapshotInfo states: a disk, the memory if it was wanted, and a note on what they belong to. A template's warm start is one, too.
//! The note is written last and removed first, so half a state is none.
//! States are whole: none depends on another, and any number of machines can be started from one. What its memory's image does not have yet
//! is in its journal.

pub(crate) mod image_compressor;
pub(crate) mod journal_replayer;
pub(crate) mod memory;
pub(crate) mod write;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use engine::{Durability, EngineError, SnapshotId};
use engine_host::{snapshot_tree, tree_error};
use layers::TreeName;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::vm::command_line::{MEMORY_FILE, VmSize};

/// The memory in a state.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct MemoryRecord {
    /// Bytes of it that were the machine's own.
    pub(crate) own_bytes: u64,
    /// Whether it is a stream, devices and all, instead of an image beside the devices.
    pub(crate) is_stream: bool,
}

/// What a restore must know about a state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Name of the image of its template's files.
    pub(crate) base: String,
    /// The template's layers, to make that image anew.
    pub(crate) layers: Vec<PathBuf>,
    /// What the guest had of the machine.
    #[serde(rename = "size")]
    pub(crate) size: VmSize,
    /// Size of the private disk, MiB.
    pub(crate) disk_mib: u32,
    /// None if there is no memory in it.
    pub(crate) memory: Option<MemoryRecord>,
    /// What its memory can be loaded by: [`Host::compatibility`].
    pub(crate) compatibility: String,
}

/// Where a state is kept.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFiles {
    note: PathBuf,
    /// Where pages of its memory may be that its image does not have yet. Nobody waits for a warm start: it has none.
    pub(crate) journal: Option<PathBuf>,
    /// The tree with the disk.
    pub(crate) disk: TreeName,
    /// The tree with memory and devices.
    pub(crate) memory: TreeName,
}

impl SnapshotFiles {
    /// A sandbox's, under the id it was captured as.
    pub(crate) fn of_snapshot(host: &Host, id: SnapshotId) -> Self {
        let [note, journal] = file_names(id).map(|name| host.snapshots.join(name));
        Self { journal: Some(journal), ..Self::at(note, snapshot_tree(id)) }
    }

    /// A template's warm start.
    pub(crate) fn of_warm_start(host: &Host, key: &str) -> Self {
        let disk = format!("t-{key}").parse().expect("keys are hexadecimal digits");
        Self::at(host.warm_starts.dir().join(format!("{key}.json")), disk)
    }

    fn at(note: PathBuf, disk: TreeName) -> Self {
        let memory = memory_tree(&disk);
        Self { note, journal: None, disk, memory }
    }

    /// Whether it is there, whole.
    pub(crate) fn exists(&self) -> bool {
        self.note.exists()
    }

    /// The file with its memory, if it has one and that is no stream.
    pub(crate) fn image(&self, host: &Host) -> PathBuf {
        host.trees.path(&self.memory).join(MEMORY_FILE)
    }

    /// Has its image be all of its memory.
    ///
    /// # Errors
    /// The disk is full, or the journal is damaged.
    pub(crate) fn replay(&self, host: &Host) -> Result<(), EngineError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        memory::replay(journal, &self.image(host), &|| true).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::Exhausted(
                "the disk has no room for the image of its memory; free some space or start it without memory".into(),
            ),
            _ => EngineError::Restore(format!("its memory cannot be put together: {error}")),
        })
    }

    /// Reads what is known about it.
    pub(crate) fn record(&self) -> Result<SnapshotRecord, EngineError> {
        read_record(&self.note).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => EngineError::NotFound,
            _ => EngineError::Restore(format!("its record is damaged: {error}")),
        })
    }

    /// Makes it one, now that all else is written.
    pub(crate) fn commit(&self, record: &SnapshotRecord, durability: Durability) -> io::Result<()> {
        let new = self.note.with_extension("new");
        fs::write(&new, serde_json::to_vec(record)?)?;
        durability.sync(&File::open(&new)?)?;
        fs::rename(new, &self.note)?;
        self.note.parent().map_or(Ok(()), |dir| durability.sync(&File::open(dir)?))
    }

    /// Removes it, or what is there of it.
    pub(crate) fn discard(&self, host: &Host) -> Result<(), EngineError> {
        for file in [Some(&self.note), self.journal.as_ref()].into_iter().flatten() {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(EngineError::Kernel { step: "remove a captured state", source: error });
                }
                _ => {}
            }
        }
        for tree in [&self.memory, &self.disk] {
            host.trees.discard(tree).map_err(tree_error("discard a captured state"))?;
        }
        Ok(())
    }
}

/// Names of the files that a captured state may have besides its trees.
pub(crate) fn file_names(id: SnapshotId) -> [String; 2] {
    [format!("{id}.json"), format!("{id}.pages")]
}

/// The tree with the memory that belongs to the disk in tree `disk`.
pub(crate) fn memory_tree(disk: &TreeName) -> TreeName {
    format!("m-{disk}").parse().expect("two letters more than a short name")
}

pub(crate) fn read_record(note: &Path) -> io::Result<SnapshotRecord> {
    Ok(serde_json::from_slice(&fs::read(note)?)?)
}
