//! Capturing a sandbox as a snapshot: its files as they are at one moment and, if wanted, the memory of its processes.
//! A snapshot's directory is written under another name and renamed when it is complete, so a partial one is never used.
//! The sandbox is frozen for the capture; afterwards it runs, or stays frozen, as before.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::{Durability, EngineError, SandboxId, SnapshotId, SnapshotInfo};
use engine_host::{snapshot_tree, tree_error, tree_of};
use layers::export_upper;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::criu::{DumpPlan, adjust_open_files, given_names};
use crate::host::{Host, Lease};
use crate::interrupted::rewind_interrupted_calls;
use crate::open_files::bytes_beside_memory;
use crate::record::SandboxRecord;
use crate::refusal::refusal;
use crate::scheduling::{Scheduling, unusual_scheduling};
use crate::threads::{in_vfork, refuse_traced};
use crate::volume_locks::{HeldLock, held_locks};
use crate::volumes::MountedVolume;

/// What a restore must know about a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// Name of the envd layer that its processes run from.
    #[serde(rename = "agent")]
    pub(crate) envd_layer: String,
    /// The boot id that its processes see.
    pub(crate) inner_boot: String,
    /// Whether the processes have the files in which they see their size; then a restore needs them too.
    #[serde(default)]
    pub(crate) has_resource_files: bool,
    /// Volumes that the processes have mounted; their content is not in the snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<MountedVolume>,
    /// Locks that the processes hold on files of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volume_locks: Vec<HeldLock>,
    /// Whether there is a memory image.
    pub(crate) memory: bool,
    /// Size of the memory image, bytes.
    pub(crate) memory_bytes: u64,
    /// Scheduling of threads in it that is not in the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) scheduling: Vec<Scheduling>,
}

/// The files of a snapshot: a directory with its record and memory image, and a tree with the sandbox's files.
#[derive(Debug)]
pub(crate) struct SnapshotFiles {
    id: SnapshotId,
    dir: PathBuf,
}

impl SnapshotFiles {
    pub(crate) fn of(host: &Host, id: SnapshotId) -> Self {
        Self { id, dir: host.snapshots.join(id.to_string()) }
    }

    /// The snapshot that is being written of a sandbox. A sandbox has one capture at a time, so what a killed server left of it is
    /// found by the sandbox's id.
    fn partial(host: &Host, sandbox: &SandboxId, id: SnapshotId) -> Self {
        Self { id, dir: host.snapshots.join(partial_name(sandbox)) }
    }

    /// Returns the directory of the memory image.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Whether it has been removed.
    pub(crate) fn is_gone(&self) -> bool {
        !self.dir.exists()
    }

    /// Reads its record.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if there is no such snapshot, [`EngineError::Restore`] if its record is damaged.
    pub(crate) fn record(&self) -> Result<SnapshotRecord, EngineError> {
        let bytes = fs::read(self.dir.join("meta.json")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => EngineError::NotFound,
            _ => EngineError::Kernel { step: "read a snapshot's record", source: error },
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| EngineError::Restore(format!("its record is damaged: {error}")))
    }

    /// Removes the snapshot. The directory is renamed first, so that a crash in between leaves no snapshot that looks complete.
    ///
    /// # Errors
    /// Its files cannot be renamed or removed.
    pub(crate) fn discard(&self, host: &Host) -> Result<(), EngineError> {
        let aside = self.dir.with_extension("old");
        match fs::rename(&self.dir, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(EngineError::Kernel { step: "move a snapshot aside", source: error });
            }
            _ => {}
        }
        // Both, whichever fails: the memory image takes room on another file system.
        let files = host.trees.discard(&snapshot_tree(self.id));
        let memory = remove_dir(&aside);
        files.map_err(tree_error("remove a snapshot's files"))?;
        memory.map_err(EngineError::kernel("remove a memory image"))
    }
}

/// Returns the name of the directory of a snapshot that is being written.
pub(crate) fn partial_name(sandbox: &SandboxId) -> String {
    format!("{sandbox}.new")
}

/// Captures a running sandbox.
///
/// # Errors
/// [`EngineError::Unsupported`] without CRIU, [`EngineError::Capture`] with the reason otherwise.
pub(crate) async fn capture(
    lease: Arc<Lease>,
    sandbox: SandboxId,
    id: SnapshotId,
    memory: bool,
    durability: Durability,
) -> Result<SnapshotInfo, EngineError> {
    if memory {
        lease.host.checkpointer()?;
    }
    let begun = Instant::now();
    let guard = freeze(&lease).await?;
    // Runs to its end even if the caller is cancelled: a dump must not be interrupted, and the thaw comes after it.
    let work = tokio::task::spawn_blocking(move || {
        let captured = write_snapshot(&lease, &sandbox, id, memory, durability);
        drop(guard);
        captured.map(|memory_bytes| SnapshotInfo { memory, memory_bytes, stopped: begun.elapsed() })
    });
    work.await.map_err(|_| EngineError::Capture("the capture was interrupted".into()))?
}

/// Writes what the sandbox has changed into `target`, as a layer.
///
/// # Errors
/// [`EngineError::Capture`] with the reason.
pub(crate) async fn export_layer(
    lease: Arc<Lease>,
    upper: PathBuf,
    target: PathBuf,
) -> Result<(), EngineError> {
    let guard = freeze(&lease).await?;
    let work = tokio::task::spawn_blocking(move || {
        let exported = export_upper(&upper, &target);
        drop(guard);
        exported.map_err(|error| EngineError::Capture(error.to_string()))
    });
    work.await.map_err(|_| EngineError::Capture("the export was interrupted".into()))?
}

/// Freezes the sandbox, unless it is frozen already. It is thawed again when the returned guard is dropped.
async fn freeze(lease: &Arc<Lease>) -> Result<ThawGuard, EngineError> {
    let was_frozen = lease.group.is_frozen().map_err(EngineError::kernel("read the freezer's state"))?;
    let guard = ThawGuard(Some(lease.clone()).filter(|_| !was_frozen));
    if !was_frozen {
        lease.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
    }
    Ok(guard)
}

/// Thaws the sandbox when dropped, if it was running before.
struct ThawGuard(Option<Arc<Lease>>);

impl Drop for ThawGuard {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take()
            && let Err(error) = lease.group.thaw_now()
        {
            warn!(group = lease.group.name(), %error, "failed to thaw a sandbox after its capture");
        }
    }
}

/// How long a sandbox is thawed and frozen again because processes are in `vfork`, and how long it runs each time at most: the times
/// differ, as programs may have a rhythm of their own.
const MAX_VFORK_WAIT: Duration = Duration::from_secs(2);
const VFORK_TIMES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(3), Duration::from_millis(7)];

/// Lets a frozen sandbox run on for some milliseconds while a process has begun to start a program and the child has not executed it
/// yet: until then CRIU cannot take the process over.
fn leave_vforks(lease: &Lease) -> Result<(), EngineError> {
    let group = lease.group.unified_path();
    let deadline = Instant::now() + MAX_VFORK_WAIT;
    for time in VFORK_TIMES.iter().cycle() {
        let waiting = in_vfork(group).map_err(EngineError::kernel("list the sandbox's threads"))?;
        let Some(thread) = waiting else { break };
        if Instant::now() > deadline {
            return Err(refusal(
                Some(thread.process),
                "waits for a child that does not execute a program (vfork)",
            ));
        }
        lease.group.thaw_now().map_err(EngineError::kernel("thaw"))?;
        // The kernel does not tell when a program is executed.
        thread::park_timeout(*time);
        lease.group.freeze_now().map_err(EngineError::kernel("freeze"))?;
    }
    Ok(())
}

/// Makes the calls begin again that the freeze interrupted. A failure is logged: then programs see `EINTR`.
fn restart_calls(lease: &Lease) {
    match rewind_interrupted_calls(lease.group.unified_path()).and_then(|_| lease.group.wait_frozen()) {
        Ok(()) => {}
        Err(error) => {
            warn!(group = lease.group.name(), %error, "failed to restart calls that a freeze interrupted");
        }
    }
}

/// Writes the snapshot of a frozen sandbox and returns the size of its memory image. On an error nothing is left of it.
fn write_snapshot(
    lease: &Lease,
    sandbox: &SandboxId,
    id: SnapshotId,
    memory: bool,
    durability: Durability,
) -> Result<u64, EngineError> {
    let host = &lease.host;
    let partial = SnapshotFiles::partial(host, sandbox, id);
    let record: SandboxRecord = host.records.load(sandbox).map_err(|_| EngineError::NotFound)?;
    let lock = host.records.lock(sandbox).map_err(|_| EngineError::NotFound)?;
    if memory {
        leave_vforks(lease)?;
        refuse_traced(lease.group.unified_path())?;
    }
    restart_calls(lease);
    let work = || -> Result<u64, EngineError> {
        fs::create_dir_all(partial.memory())
            .map_err(EngineError::kernel("make a directory for the snapshot"))?;
        let copy_files = || {
            let copied = host.trees.copy(&tree_of(sandbox), &snapshot_tree(id), true, None);
            copied.map_err(tree_error("capture the files"))
        };
        let memory_bytes = if memory {
            write_memory(lease, &record, &partial.memory(), &lock, durability, copy_files)?
        } else {
            copy_files()?;
            0
        };
        let (envd_layer, inner_boot) = (record.envd_layer.clone(), record.inner_boot.clone());
        let scheduling = if memory {
            unusual_scheduling(lease.group.unified_path(), record.process.pid)
        } else {
            Ok(Vec::new())
        };
        let scheduling = scheduling.map_err(EngineError::kernel("read how threads are scheduled"))?;
        let volumes = if memory { record.volumes.as_slice() } else { &[] };
        let volume_locks = held_locks(lease.group.unified_path(), volumes)
            .map_err(EngineError::kernel("list locks in volumes"))?;
        let snapshot_record = SnapshotRecord {
            envd_layer,
            inner_boot,
            has_resource_files: record.has_resource_files,
            volumes: record.volumes.clone(),
            volume_locks,
            memory,
            memory_bytes,
            scheduling,
        };
        write_record(&partial.dir.join("meta.json"), &snapshot_record, durability)
            .map_err(EngineError::kernel("write the snapshot's record"))?;
        fs::rename(&partial.dir, &SnapshotFiles::of(host, id).dir)
            .and_then(|()| durability.sync(&File::open(&host.snapshots)?))
            .map_err(EngineError::kernel("complete the snapshot"))?;
        Ok(memory_bytes)
    };
    work().map_err(|error| {
        let _ = host.trees.discard(&snapshot_tree(id));
        let _ = remove_dir(&partial.dir);
        error.in_capture()
    })
}

/// Dumps the memory of a frozen sandbox into the directory `images`, and calls `copy_files` at the right moment of that. Returns the size of
/// the image, bytes.
fn write_memory(
    lease: &Lease,
    record: &SandboxRecord,
    images: &Path,
    lock: &File,
    durability: Durability,
    copy_files: impl FnMut() -> Result<(), EngineError>,
) -> Result<u64, EngineError> {
    let cgroup = lease.group.unified_path();
    let plan = DumpPlan {
        pid: record.process.pid,
        size_mib: lease.host.check_memory_room(&lease.group, bytes_beside_memory(cgroup)?)?.needed_mib(),
        owner: lease.namespace_owner(),
        cgroup,
        volumes: &record.volumes,
        images,
        lock: lock.as_fd(),
    };
    lease.host.checkpointer()?.dump(&plan, copy_files)?;
    refuse_given_names(images, &record.volumes)?;
    let shared: Vec<&str> = record.volumes.iter().map(|volume| volume.mount_point.as_str()).collect();
    adjust_open_files(images, &shared)
        .map_err(EngineError::kernel("adjust open files in the memory image"))?;
    if durability == Durability::Durable {
        sync_dir(images).map_err(EngineError::kernel("sync the memory image"))?;
    }
    total_size(images).map_err(EngineError::kernel("measure the memory image"))
}

/// Refuses an image with names that CRIU has given to deleted files of volumes: they are not in the snapshot, so they are gone at the
/// restore.
fn refuse_given_names(images: &Path, volumes: &[MountedVolume]) -> Result<(), EngineError> {
    let mut in_volume = false;
    given_names(images, |name| {
        in_volume |= volumes.iter().any(|volume| Path::new(name).starts_with(&volume.mount_point));
        Ok(())
    })
    .map_err(EngineError::kernel("read the memory image"))?;
    if in_volume {
        return Err(refusal(
            None,
            "has a file of a volume open whose name was removed while it has another one",
        ));
    }
    Ok(())
}

fn write_record(path: &Path, record: &SnapshotRecord, durability: Durability) -> io::Result<()> {
    fs::write(path, serde_json::to_vec(record)?)?;
    durability.sync(&File::open(path)?)
}

/// Removes a directory and everything in it. Succeeds if it does not exist.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the size of all files of a directory without subdirectories, bytes.
fn total_size(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// Number of threads that sync files at once. Each sync waits for the file system's journal; those that wait together wait once.
const SYNC_THREADS: usize = 8;
/// Number of files from which on the whole file system is synced at once. A sandbox decides how many files its image has: one for each
/// shared mapping.
const MANY_FILES: usize = 256;

/// Syncs every file of a directory without subdirectories, and the directory itself. Has few files open at once.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let open_dir = File::open(dir)?;
    if fs::read_dir(dir)?.take(MANY_FILES).count() == MANY_FILES {
        return Ok(rustix::fs::syncfs(&open_dir)?);
    }
    let entries = Mutex::new(fs::read_dir(dir)?);
    let next = || entries.lock().next();
    thread::scope(|scope| {
        let sync = || -> io::Result<()> {
            while let Some(entry) = next() {
                File::open(entry?.path())?.sync_all()?;
            }
            Ok(())
        };
        let syncs: Vec<_> = (0..SYNC_THREADS).map(|_| scope.spawn(sync)).collect();
        syncs.into_iter().try_for_each(|sync| {
            sync.join().unwrap_or_else(|_| Err(io::Error::other("a file's sync was interrupted")))
        })
    })?;
    open_dir.sync_all()
}
