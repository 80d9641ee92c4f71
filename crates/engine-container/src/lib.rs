//! The container engine: each sandbox is a set of namespaces owned by its own user namespace, on the host's kernel.
//! Where to read: `slot` for what is made in advance, `rootfs` and `launch` for a start, `sandbox` for a running container, `capture`,
//! `restore` and `criu` for snapshots, `sweep` for what happens after a restart of the server.
//! Needs Linux 6.15 and root; the processes of sandboxes never run with an id of the host.

mod capture;
mod criu;
mod devices;
mod echo;
mod host;
mod interrupted;
mod launch;
mod namespaces;
mod open_files;
mod private_tree;
mod processors;
mod ready_slots;
mod record;
mod refusal;
mod resources;
mod restore;
mod rootfs;
mod sandbox;
mod scheduling;
mod seccomp;
mod slot;
mod start;
mod sweep;
mod threads;
mod volume_locks;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use engine::{
    Capabilities, Descriptor, Engine, EngineError, Isolation, RestoreMode, Sandbox, SandboxId, SnapshotId,
    StartSpec, TemplateImage,
};
use engine_host::StartSource;
use layers::TreesConfig;
use net::GatewayConfig;

use crate::capture::SnapshotFiles;
pub use crate::criu::Criu;
use crate::host::Host;
use crate::ready_slots::ReadySlots;

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Directory of sandboxes' files, records and snapshots. Used by this server alone.
    pub data_dir: PathBuf,
    /// Directory for mounts and locks, shared by all servers of the host. Usually `/run/cofferdam`.
    pub run_dir: PathBuf,
    /// The program that serves the files in which a sandbox sees its own size (`cofferdam`). Without it a thread of this process does,
    /// and running sandboxes lose these files when the process ends.
    pub resource_server: Option<PathBuf>,
    /// The envd binary: statically linked, for this architecture.
    pub envd: PathBuf,
    /// Captures memory; without it only files can be captured.
    pub criu: Option<Criu>,
    /// How writable trees are kept.
    pub trees: TreesConfig,
    /// Number of slots that are kept ready. With 0 each create makes its own.
    pub slots: usize,
    /// DNS resolvers, and private networks that sandboxes may reach.
    pub gateway: GatewayConfig,
}

/// The container engine.
#[derive(Debug)]
pub struct ContainerEngine {
    descriptor: Descriptor,
    host: Arc<Host>,
    slots: Arc<ReadySlots>,
    ready_slots: usize,
}

impl ContainerEngine {
    /// Opens the engine. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`EngineError::Host`] with the remedy where this host cannot run it.
    pub fn open(config: &ContainerConfig) -> Result<Self, EngineError> {
        let host = Arc::new(Host::open(config)?);
        let slots = ReadySlots::new(host.clone());
        let capabilities = Capabilities {
            memory_snapshots: host.checkpointer().is_ok(),
            disk_limit: host.trees.enforces_limits(),
            resource_limits: host.hierarchies.has_limits(),
            volumes: true,
        };
        let descriptor = Descriptor {
            name: "container",
            isolation: Isolation::SharedKernel,
            summary: "containers on the host's kernel: namespaces, own user ids, seccomp and no capabilities on the \
                      host; a kernel bug can break out"
                .into(),
            capabilities,
        };
        Ok(Self { descriptor, host, slots, ready_slots: config.slots })
    }

    /// Returns a sentence on how writable trees are kept, for logs.
    #[must_use]
    pub fn storage(&self) -> &str {
        self.host.trees.describe()
    }
}

#[async_trait]
impl Engine for ContainerEngine {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    async fn prepare(&self, template: &TemplateImage, _recurring: bool) -> Result<(), EngineError> {
        match template.layers.iter().find(|layer| !layer.is_dir()) {
            Some(missing) => Err(EngineError::Template(format!("layer {} is missing", missing.display()))),
            None => Ok(()),
        }
    }

    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError> {
        start::start(&self.host, &self.slots, spec, StartSource::Template).await
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        sweep::adopt(&self.host, id).await
    }

    async fn adopt_late(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        sweep::adopt_late(&self.host, id).await
    }

    async fn restore(
        &self,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError> {
        let source = StartSource::Snapshot(snapshot, restore_mode);
        start::start(&self.host, &self.slots, spec, source).await
    }

    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        let host = self.host.clone();
        let discard =
            tokio::task::spawn_blocking(move || SnapshotFiles::of(&host, snapshot).discard(&host)).await;
        discard.map_err(|_| EngineError::Timeout("removing a snapshot"))?
    }

    async fn memory_pressure(&self) {
        engine_host::memory_pressure().await;
    }

    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
        let removed = sweep::sweep(&self.host, keep, snapshots).await?;
        // After the sweep: a new slot must not take the name of a stale control group.
        self.slots.fill(self.ready_slots).map_err(EngineError::kernel("start to prepare slots"))?;
        Ok(removed)
    }

    async fn shutdown(&self) {
        for sandbox in self.host.running.take_all() {
            sandbox.leave().await;
        }
        let slots = self.slots.clone();
        let _ = tokio::task::spawn_blocking(move || slots.stop()).await;
    }
}
