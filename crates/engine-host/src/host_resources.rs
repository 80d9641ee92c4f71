//! [`HostResources`]: what every engine opens on the host once, when the server starts.

use std::fs;
use std::path::{Path, PathBuf};

use engine::{EngineError, SandboxId};
use layers::{Trees, TreesConfig};
use tracing::warn;

use crate::host_limits::raise_host_limits;
use crate::{
    Group, Hierarchies, MemoryRoom, Records, RunDir, UidRanges, instance_name, make_dir, make_private_dir,
    tree_of,
};

/// First kernel with what the engines use: overlay layers as file descriptors (6.13) and clones of detached mounts (6.15).
const MIN_KERNEL: (u32, u32) = (6, 15);

/// One engine's directories, records, ids and control groups on this host.
#[derive(Debug)]
pub struct HostResources {
    /// Records of running sandboxes.
    pub records: Records,
    /// Writable trees of sandboxes and snapshots.
    pub trees: Trees,
    /// Directory of the snapshots' metadata.
    pub snapshots: PathBuf,
    /// Ranges of user ids.
    pub uids: UidRanges,
    /// Control groups.
    pub hierarchies: Hierarchies,
    /// An empty directory over which a sandbox's process attaches its root, in its own mount namespace.
    pub root_target: PathBuf,
    /// Directory for mounts and sockets. Dropped last, because the other fields use files in it.
    pub run_dir: RunDir,
}

impl HostResources {
    /// Opens everything. `data_dir` exists and belongs to one engine of one server; `run_dir` is shared by all servers of the
    /// host, usually `/run/cofferdam`.
    ///
    /// # Errors
    /// [`EngineError::Host`] with the remedy, or the step that failed.
    pub fn open(data_dir: &Path, run_dir: &Path, storage: TreesConfig) -> Result<Self, EngineError> {
        let instance = instance_name(data_dir).map_err(EngineError::kernel("name this server"))?;
        let own_run_dir = make_dir(&run_dir.join(&instance))?;
        Ok(Self {
            records: Records::new(make_private_dir(&data_dir.join("sandboxes"))?),
            trees: Trees::open(data_dir, storage).map_err(|error| EngineError::Host {
                what: format!("cannot open the storage of sandboxes: {error}"),
                remedy: "see `cofferdam doctor`; --storage chooses another kind".into(),
            })?,
            snapshots: make_private_dir(&data_dir.join("snapshots"))?,
            uids: UidRanges::open(&run_dir.join("uids"), data_dir)
                .map_err(EngineError::kernel("take a block of user ids"))?,
            hierarchies: Hierarchies::open(&instance, &own_run_dir)
                .map_err(EngineError::kernel("open control groups"))?,
            root_target: make_dir(&own_run_dir.join("root"))?,
            run_dir: RunDir(own_run_dir),
        })
    }

    /// Removes the files and the record of a sandbox that has ended. Failures are logged; the sweep of the next start tries
    /// again.
    pub fn remove_sandbox(&self, id: &SandboxId) {
        if let Err(error) = self.trees.discard(&tree_of(id)) {
            warn!(sandbox_id = %id, %error, "failed to remove the files of an ended sandbox");
        }
        if let Err(error) = self.records.remove(id) {
            warn!(sandbox_id = %id, %error, "failed to remove the record of an ended sandbox");
        }
    }

    /// Checks that the disk has room for an image of the memory of the processes in `group`, and of `files` bytes of files.
    ///
    /// # Errors
    /// [`EngineError::Exhausted`] if the disk has not enough room.
    pub fn check_memory_room(&self, group: &Group, files: u64) -> Result<MemoryRoom, EngineError> {
        MemoryRoom::check(group, files, &self.snapshots)
    }
}

impl Drop for HostResources {
    fn drop(&mut self) {
        self.hierarchies.remove_if_empty();
        let _ = fs::remove_dir(&self.root_target);
    }
}

/// Checks that `engine` can run on this host: kernel and privileges. Raises limits ([`raise_host_limits`]). `root_reason` completes the sentence "the … engine needs root to …".
///
/// # Errors
/// [`EngineError::Host`] with the remedy.
pub fn check_host(engine: &str, root_reason: &str) -> Result<(), EngineError> {
    check_kernel(engine)?;
    if !rustix::process::geteuid().is_root() {
        return Err(EngineError::Host {
            what: format!("the {engine} engine needs root to {root_reason}"),
            remedy: "start the server as root; sandboxes never run as the host's root".into(),
        });
    }
    raise_host_limits().map_err(EngineError::kernel("raise the limit of open files"))
}

fn check_kernel(engine: &str) -> Result<(), EngineError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= MIN_KERNEL {
        return Ok(());
    }
    let (major, minor) = MIN_KERNEL;
    Err(EngineError::Host {
        what: format!("the {engine} engine needs Linux {major}.{minor} or newer; this is {release}"),
        remedy: "boot a newer kernel (Debian: the one from backports)".into(),
    })
}
