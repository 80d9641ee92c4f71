//! [`ContainerSandbox`]: a running container, and how it is reached, stopped, measured and ended.
//! Its end is noticed through PID 1's pidfd, whatever the cause; everything that it held on the host is then released.
//! The same code serves sandboxes started by this server and those adopted from an earlier one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use engine::{
    Durability, EgressPolicy, EngineError, ExitReason, MemoryKill, Sandbox, SandboxId, SnapshotId,
    SnapshotInfo, Stats, TeamId, VolumeMount,
};
use engine_host::{MainProcess, tree_of};
use net::Gateway;
use parking_lot::Mutex;
use sys::Namespace;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::debug;

use crate::capture;
use crate::host::Lease;
use crate::processors::ProcessorShare;
use crate::record::SandboxRecord;
use crate::volumes::mount_volumes;

/// A running container.
#[derive(Debug)]
pub(crate) struct ContainerSandbox {
    id: SandboxId,
    private_dir: PathBuf,
    main_process: MainProcess,
    network: Namespace,
    memory_kills: watch::Receiver<MemoryKill>,
    /// Present while it runs.
    resources: Mutex<Option<RunningResources>>,
}

/// What is released when the sandbox ends.
#[derive(Debug)]
struct RunningResources {
    /// `None` when a process of the sandbox took the gateway's ports while no server was running: then nothing gets out.
    gateway: Option<Gateway>,
    /// `None` when it may run on all of the host's.
    processors: Option<ProcessorShare>,
    lease: Arc<Lease>,
}

impl ContainerSandbox {
    /// Begins to watch over a running PID 1, on a task that ends with it.
    ///
    /// # Errors
    /// The pidfd cannot be registered with the runtime.
    pub(crate) fn watch(
        id: SandboxId,
        pidfd: OwnedFd,
        network: Namespace,
        gateway: Option<Gateway>,
        processors: Option<ProcessorShare>,
        lease: Lease,
    ) -> io::Result<Arc<Self>> {
        let host = lease.host.clone();
        let sandbox = Arc::new(Self {
            private_dir: host.trees.path(&tree_of(&id)),
            id: id.clone(),
            main_process: MainProcess::new(pidfd)?,
            network,
            memory_kills: host.memory_kills.subscribe(lease.group.name()),
            resources: Mutex::new(Some(RunningResources { gateway, processors, lease: Arc::new(lease) })),
        });
        host.running.add(id, &sandbox);
        tokio::spawn(sandbox.clone().follow_to_end());
        Ok(sandbox)
    }

    /// Follows PID 1 to its end and then releases everything that the sandbox held.
    async fn follow_to_end(self: Arc<Self>) {
        let on_exit = |reason: &ExitReason| {
            debug!(sandbox_id = %self.id, ?reason, "sandbox ended");
            let resources = self.resources.lock().take();
            if let Some(resources) = &resources {
                resources.lease.host.running.remove(&self.id);
            }
            let id = self.id.clone();
            move || {
                let RunningResources { gateway, processors, lease } = resources?;
                let host = lease.host.clone();
                // The kernel kills the other processes with PID 1, but not those that joined the group from outside.
                let remains = (!lease.kill_processes(&id)).then(|| lease.clone());
                drop((gateway, processors, lease));
                host.remove_sandbox(&id);
                remains
            }
        };
        self.main_process.follow(on_exit).await;
    }

    /// Stops serving the sandbox without ending it, so that another server can adopt it.
    pub(crate) async fn leave(&self) {
        self.main_process.leave();
        let resources = self.resources.lock().take();
        if let Some(resources) = resources {
            resources.lease.leave();
            if let Some(gateway) = resources.gateway {
                gateway.stop().await;
            }
        }
    }

    fn lease(&self) -> Result<Arc<Lease>, EngineError> {
        self.resources.lock().as_ref().map(|held| held.lease.clone()).ok_or(EngineError::NotFound)
    }

    fn with_gateway(&self, action: impl FnOnce(&Gateway)) {
        if let Some(gateway) = self.resources.lock().as_ref().and_then(|held| held.gateway.as_ref()) {
            action(gateway);
        }
    }
}

#[async_trait]
impl Sandbox for ContainerSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        if self.main_process.has_exited() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if port == envd_api::PORT {
            return net::dial_as_control(&self.network, port).await;
        }
        net::dial(&self.network, port).await
    }

    async fn mount(&self, volumes: Vec<VolumeMount>) -> Result<(), EngineError> {
        let (lease, id) = (self.lease()?, self.id.clone());
        let work = move || -> Result<(), EngineError> {
            let records = &lease.host.records;
            let mut record: SandboxRecord = records.load(&id).map_err(|_| EngineError::NotFound)?;
            record.volumes.extend(mount_volumes(record.process.pid, &volumes)?);
            records.save(&id, &record).map_err(EngineError::kernel("record the sandbox"))
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(EngineError::Died("a mount was interrupted".into())))
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.lease()?.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
        // A thaw and a restore then find the same: connections to the outside are closed.
        self.with_gateway(Gateway::cut);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.lease()?.group.set_frozen(false).await.map_err(EngineError::kernel("thaw"))
    }

    async fn capture(
        &self,
        snapshot: SnapshotId,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotInfo, EngineError> {
        capture::capture(self.lease()?, self.id.clone(), snapshot, memory, durability).await
    }

    async fn export_layer(&self, target: &Path) -> Result<(), EngineError> {
        capture::export_layer(self.lease()?, self.private_dir.join("upper"), target.to_owned()).await
    }

    async fn stats(&self) -> Result<Stats, EngineError> {
        let lease = self.lease()?;
        let tree = tree_of(&self.id);
        let read = tokio::task::spawn_blocking(move || {
            let stats = lease.group.stats()?;
            // Elsewhere the size is found by reading every directory.
            let usage =
                lease.host.trees.enforces_limits().then(|| lease.host.trees.usage(&tree).ok()).flatten();
            let Some((usage, limit)) = usage.and_then(|usage| Some((usage, usage.limit?))) else {
                return Ok::<_, io::Error>(stats);
            };
            Ok(Stats { disk_bytes: usage.used, disk_limit_bytes: limit, ..stats })
        })
        .await;
        read.map_err(|_| EngineError::NotFound)?.map_err(EngineError::kernel("read statistics"))
    }

    fn set_egress(&self, policy: EgressPolicy) {
        self.with_gateway(|gateway| gateway.set_policy(policy));
    }

    fn set_team(&self, team: TeamId) {
        self.with_gateway(|gateway| gateway.set_team(team.as_u128()));
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.main_process.kill().await
    }

    async fn released(&self) {
        self.main_process.released().await;
    }

    fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.main_process.exit()
    }

    fn memory_kills(&self) -> watch::Receiver<MemoryKill> {
        self.memory_kills.clone()
    }

    fn private_dir(&self) -> PathBuf {
        self.private_dir.clone()
    }
}
