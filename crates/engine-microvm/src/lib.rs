//! The microVM engine: every sandbox is a virtual machine with a kernel of its own, run by a confined QEMU.
//! Read `machine/` for one QEMU, `start` and `plan` for boots and clones, `capture`, `save` and `memory` for states, `replayer` and `compressor` for
//! what becomes of them, `templates` for warm starts, `sweep` for crashes. x86-64, Linux 6.15 and root; machines never run with an id of the host.

mod accelerator;

mod base_images;
mod capture;
mod claim;

mod disks;
mod host;
mod vm;

mod launch_plan;
mod probe;
mod record;

mod sandbox;
mod snapshot;
mod start;
mod sweep;
mod warm_starts;
mod worker_thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Capabilities, Descriptor, Engine, EngineError, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec,
    TemplateImage,
};
pub use guest::Tools;
use layers::TreesConfig;
use net::GatewayConfig;

pub use crate::accelerator::Accelerator;
use crate::host::Host;
pub use crate::probe::probe;
use crate::snapshot::SnapshotFiles;
use crate::start::StartSource;
pub use crate::vm::command_line::MachineType;

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// The server's data directory; what is this engine's is in `microvm` below it.
    pub data_dir: PathBuf,
    /// Where sockets and locks go; shared by all servers of the machine. Usually `/run/cofferdam`.
    pub run_dir: PathBuf,
    /// QEMU and the guest's kernel.
    pub tools: Tools,
    /// What executes the guests.
    pub accelerator: Accelerator,
    /// The machine that QEMU plays.
    pub machine_type: MachineType,
    /// The envd binary: static.
    pub envd: PathBuf,
    /// The guest's first program: static.
    pub guest_init: PathBuf,
    /// How disks and memory images are kept.
    pub trees: TreesConfig,
    /// Resolvers, and exceptions from the closed private networks.
    pub gateway: GatewayConfig,
    /// How long a guest may take to boot, before it is tried once more.
    pub boot_timeout: Duration,
    /// Captures memory as the stream that QEMU sends. Otherwise that is done only where its pages cannot be looked at.
    pub stream_memory: bool,
    /// How long a captured memory lies before it is compressed.
    pub compress_after: Duration,
}

/// The engine.
#[derive(Debug)]
pub struct MicrovmEngine {
    descriptor: Descriptor,
    host: Arc<Host>,
}

impl MicrovmEngine {
    /// Opens the engine. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`EngineError::Host`] with the remedy where this machine cannot run it.
    pub fn open(config: &MicrovmConfig) -> Result<Self, EngineError> {
        let host = Arc::new(Host::open(config)?);
        let descriptor = Descriptor {
            name: "microvm",
            isolation: host.accelerator.isolation(),
            summary: host.accelerator.summary(host.tools.qemu_version(), host.machine_type),
            capabilities: Capabilities {
                memory_snapshots: true,
                // A disk has the size it has.
                disk_limit: true,
                resource_limits: host.hierarchies.has_limits(),
            },
        };
        Ok(Self { descriptor, host })
    }

    /// One honest sentence on how disks and memory images are kept.
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
        discarded.map_err(|_| EngineError::Timeout("discarding a captured state"))?
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
