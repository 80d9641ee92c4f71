//! Captured states: a sandbox's files as they stood at one moment and, if wanted, the memory of its processes.
//! A state is made beside its final name and renamed when all of it is on disk, so a half-made one is never seen.
//! The sandbox stands still meanwhile and is then as it was.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::{Durability, EngineError, SandboxId, SnapshotId, SnapshotInfo};
use engine_host::{snapshot_tree, tree_error, tree_of};
use layers::{export_upper, room_beside};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::host::Host;
use crate::record::Record;
use crate::slot::Claim;

/// What a restore must know about a captured state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Name of the agent's layer that its processes run from.
    pub(crate) agent: String,
    /// What its processes see as the id of their boot.
    pub(crate) inner_boot: String,
    /// Whether there is a memory image.
    pub(crate) memory: bool,
    /// Its size, bytes.
    pub(crate) memory_bytes: u64,
}

/// Where a captured state is kept.
#[derive(Debug)]
pub(crate) struct State {
    id: SnapshotId,
    dir: PathBuf,
}

impl State {
    pub(crate) fn of(host: &Host, id: SnapshotId) -> Self {
        Self { id, dir: host.snapshots.join(id.to_string()) }
    }

    /// The state that is being made of a sandbox: it has one capture at a time, and what a killed server leaves is known by its
    /// name.
    pub(crate) fn half_made(host: &Host, sandbox: &SandboxId, id: SnapshotId) -> Self {
        Self { id, dir: host.snapshots.join(half_made_name(sandbox)) }
    }

    /// The memory image.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Whether it has been removed.
    pub(crate) fn is_gone(&self) -> bool {
        !self.dir.exists()
    }

    /// Reads what is known about it.
    pub(crate) fn meta(&self) -> Result<Meta, EngineError> {
        let bytes = fs::read(self.dir.join("meta.json")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => EngineError::NotFound,
            _ => EngineError::Kernel { step: "read a captured state", source: error },
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| EngineError::Restore(format!("its record is damaged: {error}")))
    }

    /// Removes it. From the first step on it is no state any more, so that a crash in between leaves remains and no half.
    pub(crate) fn discard(&self, host: &Host) -> Result<(), EngineError> {
        let aside = self.dir.with_extension("old");
        match fs::rename(&self.dir, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(EngineError::Kernel { step: "move a captured state aside", source: error });
            }
            _ => {}
        }
        host.trees.discard(&snapshot_tree(self.id)).map_err(tree_error("discard captured files"))?;
        remove_dir(&aside).map_err(EngineError::kernel("remove a memory image"))
    }
}

/// Name of the directory of a state while it is made.
pub(crate) fn half_made_name(sandbox: &SandboxId) -> String {
    format!("{sandbox}.new")
}

/// Captures a running sandbox.
pub(crate) async fn capture(
    claim: Arc<Claim>,
    sandbox: SandboxId,
    id: SnapshotId,
    memory: bool,
    durability: Durability,
) -> Result<SnapshotInfo, EngineError> {
    if memory {
        claim.host.memory()?;
    }
    let begun = Instant::now();
    let guard = stop(&claim).await?;
    // Runs to its end even if the caller goes away: a dump must not be interrupted, and the thaw comes after it.
    let work = tokio::task::spawn_blocking(move || {
        let captured = write(&claim, &sandbox, id, memory, durability);
        drop(guard);
        captured.map(|memory_bytes| SnapshotInfo { memory, memory_bytes, stopped: begun.elapsed() })
    });
    work.await.map_err(|_| EngineError::Capture("the capture was interrupted".into()))?
}

/// Writes the sandbox's changes as a layer.
pub(crate) async fn export_layer(
    claim: Arc<Claim>,
    upper: PathBuf,
    target: PathBuf,
) -> Result<(), EngineError> {
    let guard = stop(&claim).await?;
    let work = tokio::task::spawn_blocking(move || {
        let exported = export_upper(&upper, &target);
        drop(guard);
        exported.map_err(|error| EngineError::Capture(error.to_string()))
    });
    work.await.map_err(|_| EngineError::Capture("the export was interrupted".into()))?
}

/// Freezes the sandbox, unless it is frozen already, until the answer is dropped.
async fn stop(claim: &Arc<Claim>) -> Result<Thaw, EngineError> {
    let was_frozen = claim.group.is_frozen().map_err(EngineError::kernel("look at the freezer"))?;
    let guard = Thaw(Some(claim.clone()).filter(|_| !was_frozen));
    if !was_frozen {
        claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    }
    Ok(guard)
}

/// Lets the sandbox go on, whatever happened.
struct Thaw(Option<Arc<Claim>>);

impl Drop for Thaw {
    fn drop(&mut self) {
        if let Some(claim) = self.0.take()
            && let Err(error) = claim.group.thaw_now()
        {
            warn!(group = claim.group.name(), %error, "a sandbox could not be thawed after its capture");
        }
    }
}

/// Returns the size of the memory image.
fn write(
    claim: &Claim,
    sandbox: &SandboxId,
    id: SnapshotId,
    memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let host = &claim.host;
    let state = State::of(host, id);
    let new = State::half_made(host, sandbox, id);
    let record: Record = host.records.load(sandbox).map_err(|_| EngineError::NotFound)?;
    let lock = host.records.lock(sandbox).map_err(|_| EngineError::NotFound)?;
    let work = || -> Result<u64, EngineError> {
        fs::create_dir_all(new.memory())
            .map_err(EngineError::kernel("make a directory for the captured state"))?;
        let mut size = 0;
        if memory {
            let size_mib = u32::try_from(check_room(claim)? >> 20).unwrap_or(u32::MAX);
            host.memory()?.dump(
                record.process.pid,
                size_mib,
                claim.owner(),
                claim.group.unified_path(),
                &new.memory(),
                lock.as_fd(),
            )?;
            if durability == Durability::Durable {
                make_durable(&new.memory()).map_err(EngineError::kernel("write the memory image"))?;
            }
            size = size_of(&new.memory()).map_err(EngineError::kernel("measure the memory image"))?;
        }
        host.trees
            .copy(&tree_of(sandbox), &snapshot_tree(id), true, None)
            .map_err(tree_error("capture the files"))?;
        let (agent, inner_boot) = (record.agent.clone(), record.inner_boot.clone());
        let meta = Meta { agent, inner_boot, memory, memory_bytes: size };
        save(&new.dir.join("meta.json"), &meta, durability)
            .map_err(EngineError::kernel("record the captured state"))?;
        fs::rename(&new.dir, &state.dir)
            .and_then(|()| durability.sync(&File::open(&host.snapshots)?))
            .map_err(EngineError::kernel("keep the captured state"))?;
        Ok(size)
    };
    work().map_err(|error| {
        let _ = host.trees.discard(&snapshot_tree(id));
        let _ = remove_dir(&new.dir);
        EngineError::Capture(describe(&error))
    })
}

/// A memory image must not take the last of a disk that trees may lie on: no sandbox of this server would survive that.
/// Returns how much memory there is to write, bytes.
fn check_room(claim: &Claim) -> Result<u64, EngineError> {
    let stats = claim.group.stats().map_err(EngineError::kernel("read statistics"))?;
    let room = room_beside(&claim.host.snapshots)
        .map_err(EngineError::kernel("look for room for the memory image"))?;
    if stats.memory_bytes <= room {
        return Ok(stats.memory_bytes);
    }
    Err(EngineError::Exhausted(format!(
        "its memory takes {} MiB and the disk of captured states has {} to give; free some space or capture without \
         memory",
        stats.memory_bytes >> 20,
        room >> 20
    )))
}

/// A reason to be told: the sandbox is as it was, whatever the step.
fn describe(error: &EngineError) -> String {
    match error {
        EngineError::Capture(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// Removes a directory with all that is in it; one that is not there is a success.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn save(path: &Path, meta: &Meta, durability: Durability) -> io::Result<()> {
    fs::write(path, serde_json::to_vec(meta)?)?;
    durability.sync(&File::open(path)?)
}

/// Size of all files of a flat directory, bytes.
fn size_of(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// Threads that put files on disk at once. Each wait for a file is one for the file system's journal, and those that wait together
/// wait once.
const SYNCERS: usize = 8;

/// Puts every file of a flat directory on disk.
fn make_durable(dir: &Path) -> io::Result<()> {
    let open = |entry: io::Result<fs::DirEntry>| File::open(entry?.path());
    let files = fs::read_dir(dir)?.map(open).collect::<io::Result<Vec<File>>>()?;
    let share = files.len().div_ceil(SYNCERS).max(1);
    std::thread::scope(|scope| {
        let sync = |files: &[File]| files.iter().try_for_each(File::sync_all);
        let syncers: Vec<_> = files.chunks(share).map(|files| scope.spawn(move || sync(files))).collect();
        syncers.into_iter().try_for_each(|syncer| {
            syncer.join().unwrap_or_else(|_| Err(io::Error::other("a file's sync was interrupted")))
        })
    })?;
    File::open(dir)?.sync_all()
}
