//! The container engine: each sandbox is a set of namespaces owned by its own user namespace, on the host's kernel.
//! Read `slot` for what is made ahead, `rootfs` and `launch` for a start, `sandbox` for the life after, `sweep` for crashes.
//! Needs Linux 6.15 and root; sandboxes themselves never run with an id of the host.

mod capture;
mod criu;
mod devices;
mod host;
mod launch;
mod private;
mod record;
mod restore;
mod rootfs;
mod sandbox;
mod seccomp;
mod slot;
mod start;
mod sweep;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use engine::{
    Capabilities, Descriptor, Engine, EngineError, Isolation, RestoreMode, Sandbox, SandboxId, SnapshotId,
    StartSpec, TemplateImage,
};
use layers::TreesConfig;
use net::GatewayConfig;

use crate::capture::State;
pub use crate::criu::Criu;
use crate::host::Host;
use crate::slot::Pool;
use crate::start::Origin;

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Where sandboxes keep their private files; this server's alone.
    pub data_dir: PathBuf,
    /// Where short-lived mounts and locks go; shared by all servers of the machine. Usually `/run/cofferdam`.
    pub run_dir: PathBuf,
    /// The envd binary: static, for this architecture.
    pub agent: PathBuf,
    /// What captures memory; without it only files can be captured.
    pub criu: Option<Criu>,
    /// How what sandboxes write is kept.
    pub trees: TreesConfig,
    /// Slots kept ready. 0 makes each one when it is wanted.
    pub pool: usize,
    /// Resolvers, and exceptions from the closed private networks.
    pub gateway: GatewayConfig,
}

/// The engine.
#[derive(Debug)]
pub struct ContainerEngine {
    descriptor: Descriptor,
    host: Arc<Host>,
    pool: Arc<Pool>,
    pool_size: usize,
}

impl ContainerEngine {
    /// Opens the engine. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`EngineError::Host`] with the remedy where this machine cannot run it.
    pub fn open(config: &ContainerConfig) -> Result<Self, EngineError> {
        let host = Arc::new(Host::open(config)?);
        let pool = Pool::new(host.clone());
        let capabilities = Capabilities {
            memory_snapshots: host.memory().is_ok(),
            disk_limit: host.trees.enforces_limits(),
            resource_limits: host.hierarchies.has_limits(),
        };
        let descriptor = Descriptor {
            name: "container",
            isolation: Isolation::SharedKernel,
            summary: "containers on the host's kernel: namespaces, own user ids, seccomp and no capabilities on the \
                      host; a kernel bug can break out"
                .into(),
            capabilities,
        };
        Ok(Self { descriptor, host, pool, pool_size: config.pool })
    }
}

impl ContainerEngine {
    /// One honest sentence on how what sandboxes write is kept.
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
        start::start(&self.host, &self.pool, spec, Origin::Template).await
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
        start::start(&self.host, &self.pool, spec, Origin::Snapshot(snapshot, restore_mode)).await
    }

    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        let host = self.host.clone();
        let discard = tokio::task::spawn_blocking(move || State::of(&host, snapshot).discard(&host)).await;
        discard.map_err(|_| EngineError::Timeout("discarding a captured state"))?
    }

    async fn memory_pressure(&self) {
        engine_host::memory_pressure().await;
    }

    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
        let removed = sweep::sweep(&self.host, keep, snapshots).await?;
        // Not before: a new slot must not take the name of a stray group.
        self.pool.fill(self.pool_size).map_err(EngineError::kernel("start the slot pool"))?;
        Ok(removed)
    }

    async fn shutdown(&self) {
        for sandbox in self.host.running.take_all() {
            sandbox.leave().await;
        }
        let pool = self.pool.clone();
        let _ = tokio::task::spawn_blocking(move || pool.stop()).await;
    }
}
