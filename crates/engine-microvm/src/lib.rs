//! The microVM engine: every sandbox is a virtual machine with its own kernel, run by a confined
//! QEMU process.
//!
//! Where to read: `start` (boots and restores) and `launch_plan` (one QEMU from its parts), `vm`
//! (the QEMU process, its monitor and the guest agent), `capture` and `snapshot` (writing and
//! keeping memory and disk), `boot_snapshots` and `base_images` (what is kept for each template),
//! `sweep` (adoption and cleaning after a crash). Needs x86-64, Linux 6.15 and root; QEMU itself
//! runs as an unprivileged user id of its own.

mod accelerator;

mod base_images;
mod capture;
mod lease;

mod disks;
mod host;
mod vm;

mod launch_plan;
mod probe;
mod record;

mod boot_snapshots;
mod sandbox;
mod snapshot;
mod start;
mod sweep;
mod worker_thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Capabilities, Descriptor, Engine, EngineError, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec,
    TemplateImage,
};
use engine_host::StartSource;
pub use guest::Tools;
use layers::TreesConfig;
use net::GatewayConfig;

pub use crate::accelerator::Accelerator;
use crate::host::Host;
pub use crate::probe::probe;
use crate::snapshot::SnapshotFiles;
pub use crate::vm::command_line::MachineType;

/// Configuration of the engine.
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// The server's data directory; this engine uses `microvm` below it.
    pub data_dir: PathBuf,
    /// Directory for sockets and locks, shared by all servers of the host. Usually
    /// `/run/cofferdam`.
    pub run_dir: PathBuf,
    /// QEMU and the guest kernel.
    pub tools: Tools,
    /// KVM or emulation.
    pub accelerator: Accelerator,
    /// QEMU's machine type.
    pub machine_type: MachineType,
    /// The envd binary, statically linked.
    pub envd: PathBuf,
    /// The `guest-init` binary, statically linked: the first process of a guest.
    pub guest_init: PathBuf,
    /// How disks and memory images are stored.
    pub trees: TreesConfig,
    /// Settings of sandboxes' networks: DNS resolvers, and private networks that are reachable.
    pub gateway: GatewayConfig,
    /// Maximum time for a guest to boot; then the boot is tried once more.
    pub boot_timeout: Duration,
    /// Captures memory as a QEMU migration stream. When false, that is done only where the pages of
    /// QEMU cannot be read.
    pub stream_memory: bool,
    /// Age at which the memory image of a snapshot is compressed.
    pub compress_after: Duration,
}

/// The microVM engine; see the crate documentation.
#[derive(Debug)]
pub struct MicrovmEngine {
    descriptor: Descriptor,
    host: Arc<Host>,
}

impl MicrovmEngine {
    /// Opens the engine. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`EngineError::Host`], with the remedy, if this host cannot run the engine.
    pub fn open(config: &MicrovmConfig) -> Result<Self, EngineError> {
        let host = Arc::new(Host::open(config)?);
        let descriptor = Descriptor {
            name: "microvm",
            isolation: host.accelerator.isolation(),
            summary: host.accelerator.summary(host.tools.qemu_version(), host.machine_type),
            capabilities: Capabilities {
                memory_snapshots: true,
                // The size of a disk image is its limit.
                disk_limit: true,
                resource_limits: host.hierarchies.has_limits(),
                volumes: false,
            },
        };
        Ok(Self { descriptor, host })
    }

    /// Describes in one sentence how disks and memory images are stored.
    #[must_use]
    pub fn storage(&self) -> &str {
        self.host.trees.describe()
    }
}

#[async_trait]
impl Engine for MicrovmEngine {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    async fn prepare(&self, template: &TemplateImage, recurring: bool) -> Result<(), EngineError> {
        base_images::prepare(&self.host, template, recurring).await.map(drop)
    }

    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError> {
        start::start(&self.host, spec, StartSource::Template).await
    }

    async fn restore(
        &self,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError> {
        start::start(&self.host, spec, StartSource::Snapshot(snapshot, restore_mode)).await
    }

    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        let host = self.host.clone();
        let discard = move || SnapshotFiles::of_snapshot(&host, snapshot).discard(&host);
        let discarded = tokio::task::spawn_blocking(discard).await;
        discarded.map_err(|_| EngineError::Timeout("removing a snapshot"))?
    }

    async fn memory_pressure(&self) {
        engine_host::memory_pressure().await;
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        sweep::adopt(&self.host, id).await
    }

    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
        sweep::sweep(&self.host, keep, snapshots).await
    }

    async fn shutdown(&self) {
        for sandbox in self.host.running.take_all() {
            sandbox.leave().await;
        }
    }
}
