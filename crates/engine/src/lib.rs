//! The interface between the control plane and whatever runs sandboxes: the [`Engine`] and [`Sandbox`] traits and their data.
//! An engine starts sandboxes from templates and snapshots; it knows nothing of teams, keys, HTTP or timers.
//! Every engine passes the behaviour suite in `suite`.
#![forbid(unsafe_code)]

mod durability;
mod error;
mod several;
mod spec;
#[cfg(feature = "suite")]
pub mod suite;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::watch;

pub use durability::Durability;
pub use error::{DISK_FULL, EngineError};
pub use ids::{SandboxId, SnapshotId, TeamId};
pub use net::EgressPolicy;
pub use several::Engines;
pub use spec::{
    Capabilities, DEFAULT_PIDS, Descriptor, ExitReason, Isolation, MemoryKill, Resources, RestoreMode,
    SnapshotInfo, StartSpec, Stats, TemplateImage, VolumeMount,
};

/// Runs sandboxes on this host.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Returns the engine's name, isolation level and capabilities, as users see them.
    fn descriptor(&self) -> &Descriptor;

    /// Returns the descriptors of all engines behind this one, the default engine first.
    fn descriptors(&self) -> Vec<&Descriptor> {
        vec![self.descriptor()]
    }

    /// Does the slow work that a template needs before its first [`Engine::start`]. Idempotent. What was prepared for a template
    /// that is not `recurring` may be removed with its last sandbox.
    ///
    /// # Errors
    /// A layer is missing, or the engine's helper programs do not work.
    async fn prepare(&self, template: &TemplateImage, recurring: bool) -> Result<(), EngineError>;

    /// Starts a sandbox from its template. When it returns, connections to envd's port are accepted; envd itself may need a moment
    /// longer to answer. If it fails or is cancelled, nothing is left behind.
    ///
    /// # Errors
    /// See [`EngineError`]. After [`EngineError::Exhausted`] the same call may succeed later; after other errors it will fail again.
    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Starts a sandbox from a snapshot. The snapshot does not change; any number of sandboxes can be started from it.
    /// With [`RestoreMode::Memory`] its processes continue, with [`RestoreMode::Disk`] envd starts anew on its files.
    /// `spec.template` must be the template that the snapshot was captured with.
    ///
    /// # Errors
    /// As for [`Engine::start`]; [`EngineError::NotFound`] when there is no such snapshot (or no memory in it), and
    /// [`EngineError::Restore`] when it cannot be restored.
    async fn restore(
        &self,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Removes a snapshot. Succeeds if there is no such snapshot.
    ///
    /// # Errors
    /// Its files could not be removed.
    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError>;

    /// Resolves once processes of this host have to wait for memory. Never resolves where the kernel does not report that.
    async fn memory_pressure(&self);

    /// Takes over a sandbox that an earlier server process started and that is still running.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when it has ended; the next [`Engine::sweep`] removes what it left. [`EngineError::Capturing`]
    /// when the earlier server was capturing it and the capture still runs: keep it in the sweep, then call
    /// [`Engine::adopt_late`].
    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Takes over a sandbox for which [`Engine::adopt`] returned [`EngineError::Capturing`]. Waits for the capture and kills it
    /// after a time limit; the sandbox is adopted if it survives that. Can be cancelled at any point and called again.
    ///
    /// # Errors
    /// As [`Engine::adopt`]; the sandbox is then removed completely.
    async fn adopt_late(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        self.adopt(id).await
    }

    /// Removes all sandboxes of this server that are not in `keep` (processes, control groups, mounts, files) and all snapshots
    /// that are not in `snapshots`. Called once at start, after the adoptions. Returns how many were removed.
    ///
    /// # Errors
    /// Something could not be removed; the error names it.
    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError>;

    /// Releases everything but the running sandboxes, which continue to run and can be adopted by a later server.
    async fn shutdown(&self);
}

/// A running sandbox. Dropping the handle does not end the sandbox.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// Returns the id that it was started with.
    fn id(&self) -> &SandboxId;

    /// Connects to a TCP port on the sandbox's loopback interface, so servers that listen on localhost only are reached too.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there; `NotConnected` when the sandbox has ended.
    async fn dial(&self, port: u16) -> std::io::Result<TcpStream>;

    /// Mounts volumes in a running sandbox, before its owner can run programs in it.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] if the engine has no volumes, or the mount failed; then the sandbox must be killed.
    async fn mount(&self, volumes: Vec<VolumeMount>) -> Result<(), EngineError> {
        if volumes.is_empty() { Ok(()) } else { Err(EngineError::Unsupported("volumes")) }
    }

    /// Stops all processes and closes the sandbox's connections to the outside.
    ///
    /// # Errors
    /// The kernel did not confirm it in time.
    async fn freeze(&self) -> Result<(), EngineError>;

    /// Lets the processes of a frozen sandbox continue.
    ///
    /// # Errors
    /// The kernel refused.
    async fn thaw(&self) -> Result<(), EngineError>;

    /// Captures the sandbox as a snapshot with a new id: its files and, with `memory`, its processes. A
    /// [`Durability::Durable`] snapshot survives a power failure once this returns. The sandbox is stopped for the capture and
    /// afterwards is as it was, frozen or running, also when the capture fails.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] on hosts without memory snapshots, [`EngineError::Capture`] with the reason otherwise.
    async fn capture(
        &self,
        snapshot: SnapshotId,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotInfo, EngineError>;

    /// Writes everything that the sandbox has changed of its template into the new directory `target`, as a layer that can be put
    /// on top of the template's. The sandbox is stopped meanwhile and afterwards is as it was.
    ///
    /// # Errors
    /// [`EngineError::Capture`] with the reason; nothing is left of the copy then.
    async fn export_layer(&self, target: &Path) -> Result<(), EngineError>;

    /// Returns what the sandbox uses now.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when the sandbox has ended.
    async fn stats(&self) -> Result<Stats, EngineError>;

    /// Replaces the policy for outgoing traffic. New connections follow the new policy; open ones continue.
    fn set_egress(&self, policy: EgressPolicy);

    /// Assigns the team on whose account the sandbox uses what all sandboxes share, such as outgoing connections. A sandbox has no team at
    /// its start.
    fn set_team(&self, team: TeamId);

    /// Kills the sandbox and releases everything that it holds. Returns once none of its processes is alive. Works on frozen and
    /// broken sandboxes; succeeds if the sandbox has already ended.
    ///
    /// # Errors
    /// A process does not die in time; see [`Sandbox::released`].
    async fn kill(&self) -> Result<(), EngineError>;

    /// Waits, however long, until a sandbox that was killed has no process left and holds nothing of the host any more.
    async fn released(&self);

    /// Returns a receiver whose value becomes `Some` once PID 1 has ended, for whatever reason.
    fn exit(&self) -> watch::Receiver<Option<ExitReason>>;

    /// Returns a receiver of the processes that the kernel kills because a memory limit was reached. It is closed where the engine does not
    /// see them.
    fn memory_kills(&self) -> watch::Receiver<MemoryKill> {
        watch::channel(MemoryKill::default()).1
    }

    /// Returns the directory of the sandbox's private files on the host, for accounting. The server must never follow a path
    /// inside it: its content is untrusted.
    fn private_dir(&self) -> PathBuf;
}
