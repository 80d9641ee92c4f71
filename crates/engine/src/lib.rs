//! The seam between the rest of the system and whatever runs sandboxes.
//! An engine turns a template into a running computer and back; it knows nothing of teams, keys, HTTP or timers.
//! Every engine passes the one behaviour suite in `suite`.
#![forbid(unsafe_code)]

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

pub use error::EngineError;
pub use ids::{SandboxId, SnapshotId};
pub use net::EgressPolicy;
pub use several::Engines;
pub use spec::{
    Capabilities, Captured, Descriptor, ExitReason, Isolation, Resources, Revival, StartSpec, Stats,
    TemplateImage,
};

/// Something that can run sandboxes on this machine.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Name, isolation level and capabilities: what users are told.
    fn descriptor(&self) -> &Descriptor;

    /// Every engine behind this one, the one that runs what names none first.
    fn descriptors(&self) -> Vec<&Descriptor> {
        vec![self.descriptor()]
    }

    /// Makes a template ready to start from, so that [`Engine::start`] has nothing slow left to do. Idempotent. What was made for
    /// a template that is not `recurring` may go with its last sandbox.
    ///
    /// # Errors
    /// A layer is missing or the engine's helpers do not work.
    async fn prepare(&self, template: &TemplateImage, recurring: bool) -> Result<(), EngineError>;

    /// Starts a sandbox. When it returns, a connection to envd's port is accepted (envd may still be
    /// on its way to answering it). Nothing is left behind when it fails or is cancelled.
    ///
    /// # Errors
    /// See [`EngineError`]; `Exhausted` means "try later", the others will fail again.
    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Starts a sandbox from a captured state, which stays as it is: any number of sandboxes can come from one.
    /// With [`Revival::Memory`] its processes go on where they stood, otherwise envd starts anew on its files.
    /// `spec.template` must be the one it was captured with.
    ///
    /// # Errors
    /// As for [`Engine::start`]; [`EngineError::NotFound`] when there is no such state (or no memory in it), and
    /// [`EngineError::Restore`] when it cannot be brought back.
    async fn restore(
        &self,
        snapshot: SnapshotId,
        revival: Revival,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Removes a captured state; one that is not there is a success.
    ///
    /// # Errors
    /// Its files could not be moved out of the way.
    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError>;

    /// Resolves once processes of this machine have to wait for memory; never where the kernel does not tell.
    async fn memory_scarce(&self);

    /// Takes over a sandbox that an earlier server process started and that is still alive.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when it is gone; its remains are then the sweeper's. [`EngineError::Capturing`] when that server
    /// was capturing it and the capture goes on: it is to be kept by the sweep and taken over by [`Engine::adopt_late`].
    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError>;

    /// Takes over a sandbox whose adoption answered [`EngineError::Capturing`]: waits for the capture, for a limited time, then
    /// cuts it off. The sandbox goes on if it outlives that. May be dropped at any point, and asked again.
    ///
    /// # Errors
    /// As [`Engine::adopt`]; nothing of it is left then.
    async fn adopt_late(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        self.adopt(id).await
    }

    /// Ends and removes every trace of sandboxes of this server that are not in `keep`: processes, cgroups,
    /// mounts, files; and captured states that are not in `snapshots`. Called once at start, after the adoptions.
    /// Returns how many were removed.
    ///
    /// # Errors
    /// Something could not be removed; it is named in the error.
    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError>;

    /// Lets go of everything but the running sandboxes, which live on and can be adopted.
    async fn shutdown(&self);
}

/// A running sandbox. Dropping the handle does not end the sandbox: it belongs to the machine.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// The id it was started with.
    fn id(&self) -> &SandboxId;

    /// Connects to a TCP port on the sandbox's own loopback, so servers bound to localhost are reached too.
    ///
    /// # Errors
    /// `ConnectionRefused` when nothing listens there; `NotConnected` when the sandbox has ended.
    async fn dial(&self, port: u16) -> std::io::Result<TcpStream>;

    /// Stops every process where it stands, and closes its connections to the outside.
    ///
    /// # Errors
    /// The kernel did not confirm it in time.
    async fn freeze(&self) -> Result<(), EngineError>;

    /// Lets the processes go on.
    ///
    /// # Errors
    /// The kernel refused.
    async fn thaw(&self) -> Result<(), EngineError>;

    /// Captures its state under a new id, durably: it survives a power cut once this returns. The sandbox is stopped
    /// meanwhile and then as it was before, frozen or not, also when this fails.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] without memory snapshots on this host, [`EngineError::Capture`] with the reason.
    async fn capture(&self, snapshot: SnapshotId, memory: bool) -> Result<Captured, EngineError>;

    /// As [`Sandbox::capture`] with memory, for a state that is restored at once and discarded then: a loss of power may take it.
    ///
    /// # Errors
    /// As [`Sandbox::capture`].
    async fn capture_briefly(&self, snapshot: SnapshotId) -> Result<Captured, EngineError> {
        self.capture(snapshot, true).await
    }

    /// Writes everything it has changed of its template into `target`, which is made, as a layer that can be put on top
    /// of the template's. The sandbox is stopped meanwhile and then as it was.
    ///
    /// # Errors
    /// [`EngineError::Capture`] with the reason; nothing is left of the copy then.
    async fn export_layer(&self, target: &Path) -> Result<(), EngineError>;

    /// What it uses now.
    ///
    /// # Errors
    /// The sandbox has ended.
    async fn stats(&self) -> Result<Stats, EngineError>;

    /// Replaces the rules for outgoing traffic; open connections go on, new ones follow the new rules.
    fn set_egress(&self, policy: EgressPolicy);

    /// Ends it and gives everything back. Returns once no process of it is alive; works on frozen and broken
    /// sandboxes; ending an ended one is a success.
    ///
    /// # Errors
    /// A kernel object could not be released (the sweeper tries again at the next start).
    async fn kill(&self) -> Result<(), EngineError>;

    /// Becomes `Some` once PID 1 has ended, whoever ended it.
    fn exit(&self) -> watch::Receiver<Option<ExitReason>>;

    /// Directory of the sandbox's private files on the host, for accounting. Never to be walked by path.
    fn private_dir(&self) -> PathBuf;
}
