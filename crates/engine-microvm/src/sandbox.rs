//! A running sandbox: connecting to it, stopping and resuming it, its statistics and its end.
//!
//! A VM is stopped in two steps: the guest freezes user code and syncs its disk, then the virtual
//! processors stop. A guest that does not answer is stopped all the same, which harms only itself.
//! The same code serves VMs that this server started and VMs adopted from an earlier server.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use engine::{
    Durability, EgressPolicy, EngineError, ExitReason, Sandbox, SandboxId, SnapshotId, SnapshotInfo, Stats,
    TeamId,
};
use engine_host::{MainProcess, tree_of};
use guest_api::network::GUEST_V4;
use guest_api::relay::{self, MAX_LINE, RELAY_PORT, RelayRequest};
use net::Gateway;
use parking_lot::Mutex;
use sys::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::base_images::{self, BaseImage};
use crate::capture;
use crate::lease::Lease;
use crate::record::VmSpec;
use crate::snapshot::SnapshotFiles;
use crate::vm::Vm;

/// A running sandbox, implementing [`engine::Sandbox`].
#[derive(Debug)]
pub(crate) struct MicrovmSandbox {
    /// For work that must complete even if the caller is cancelled.
    this: Weak<Self>,
    pub(crate) id: SandboxId,
    pub(crate) pid: i32,
    pub(crate) vm: Vm,
    pub(crate) vm_spec: VmSpec,
    /// Whether the VM is stopped and its control group frozen. The lock is resources while that changes.
    pub(crate) frozen: tokio::sync::Mutex<bool>,
    is_quiesced: AtomicBool,
    private: PathBuf,
    main_process: MainProcess,
    network: Namespace,
    /// `None` once the sandbox has ended or was left to a later server.
    resources: Mutex<Option<RunningResources>>,
}

/// What a [`MicrovmSandbox`] is made from.
#[derive(Debug)]
pub(crate) struct SandboxParts {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) network: Namespace,
    pub(crate) vm: Vm,
    /// `None` if it could not be started at an adoption: then the sandbox has no outgoing network.
    pub(crate) gateway: Option<Gateway>,
    pub(crate) lease: Lease,
    pub(crate) vm_spec: VmSpec,
}

/// Resources that are released when the sandbox ends.
#[derive(Debug)]
struct RunningResources {
    gateway: Option<Gateway>,
    lease: Arc<Lease>,
    base: BaseImage,
}

impl MicrovmSandbox {
    /// Registers a running VM and starts the task that releases its resources when QEMU ends.
    ///
    /// # Errors
    /// The process descriptor cannot be registered with the runtime.
    pub(crate) fn watch(id: SandboxId, parts: SandboxParts) -> io::Result<Arc<Self>> {
        let SandboxParts { pid, pidfd, network, vm, gateway, lease, vm_spec } = parts;
        let (host, main_process) = (lease.host.clone(), MainProcess::new(pidfd)?);
        let base = host.base_images.acquire(&vm_spec.base);
        let sandbox = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            private: host.trees.path(&tree_of(&id)),
            id: id.clone(),
            pid,
            vm,
            vm_spec,
            frozen: tokio::sync::Mutex::new(false),
            is_quiesced: AtomicBool::new(false),
            main_process,
            network,
            resources: Mutex::new(Some(RunningResources { gateway, lease: Arc::new(lease), base })),
        });
        host.running.add(id, &sandbox);
        tokio::spawn(sandbox.clone().clean_up_at_end());
        Ok(sandbox)
    }

    async fn clean_up_at_end(self: Arc<Self>) {
        let on_exit = |reason: &ExitReason| {
            debug!(sandbox_id = %self.id, ?reason, "VM ended");
            let resources = self.resources.lock().take();
            if let Some(resources) = &resources {
                resources.lease.host.running.remove(&self.id);
            }
            let id = self.id.clone();
            move || {
                let RunningResources { gateway, lease, base } = resources?;
                let host = lease.host.clone();
                let remains = (!lease.kill_processes(&id)).then(|| lease.clone());
                // User ids and control group are released first: checking whether the base image is
                // still needed takes longer.
                drop((gateway, lease));
                base_images::release(&host, base);
                host.sockets(id.as_str()).remove();
                host.remove_sandbox(&id);
                remains
            }
        };
        self.main_process.follow(on_exit).await;
    }

    /// Releases the sandbox without ending it, so that another server can adopt it.
    pub(crate) async fn leave(&self) {
        self.main_process.leave();
        self.vm.close().await;
        let resources = self.resources.lock().take();
        if let Some(resources) = resources {
            resources.lease.leave();
            if let Some(gateway) = resources.gateway {
                gateway.stop().await;
            }
        }
    }

    pub(crate) fn lease(&self) -> Result<Arc<Lease>, EngineError> {
        let resources = self.resources.lock();
        resources.as_ref().map(|resources| resources.lease.clone()).ok_or(EngineError::NotFound)
    }

    fn with_gateway(&self, action: impl FnOnce(&Gateway)) {
        let resources = self.resources.lock();
        if let Some(gateway) = resources.as_ref().and_then(|resources| resources.gateway.as_ref()) {
            action(gateway);
        }
    }

    fn this(&self) -> Result<Arc<Self>, EngineError> {
        self.this.upgrade().ok_or(EngineError::NotFound)
    }

    /// Freezes user code and syncs the guest's disk, then stops the virtual processors.
    ///
    /// # Errors
    /// QEMU does not stop the processors. A guest that does not confirm is logged only; see
    /// [`Self::is_quiesced`].
    pub(crate) async fn stop_vm(&self) -> Result<(), EngineError> {
        let still = self.vm.guest_agent.quiesce().await;
        if let Err(reason) = &still {
            warn!(sandbox_id = %self.id, reason, "the guest did not confirm that it froze user code and synced its disk; unsynced data is in its memory only");
        }
        self.is_quiesced.store(still.is_ok(), Ordering::SeqCst);
        self.vm.monitor.stop().await
    }

    /// Whether the guest confirmed that user code was frozen when the processors were stopped.
    /// Otherwise a copy of its memory would continue user code before it has randomness of its own.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.is_quiesced.load(Ordering::SeqCst)
    }

    /// Resumes the virtual processors and then user code.
    pub(crate) async fn resume_vm(&self) -> Result<(), EngineError> {
        self.vm.monitor.cont().await?;
        if let Err(reason) = self.vm.guest_agent.resume().await {
            warn!(sandbox_id = %self.id, reason, "the guest did not confirm that it resumed user code");
        }
        Ok(())
    }

    /// Connects to the relay of the guest agent and sends a request.
    ///
    /// # Errors
    /// The guest agent does not accept connections.
    pub(crate) async fn open_relay(&self, request: RelayRequest) -> io::Result<TcpStream> {
        let mut stream = net::connect(&self.network, GUEST_V4.into(), RELAY_PORT).await?;
        stream.write_all(request.to_line().as_bytes()).await?;
        Ok(stream)
    }

    /// Connects through the relay to a service that listens on `::1` only.
    async fn dial_ipv6(&self, port: u16) -> io::Result<TcpStream> {
        let mut stream = self.open_relay(RelayRequest::Connect(port)).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") && answer.len() < MAX_LINE {
            answer.push(stream.read_u8().await?);
        }
        if answer == relay::OK.as_bytes() { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }
}

/// Runs `work` to completion even if the caller is cancelled.
async fn run_detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::spawn(work).await.map_err(|_| EngineError::Died("the work on a sandbox was interrupted".into()))?
}

#[async_trait]
impl Sandbox for MicrovmSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        if self.main_process.has_exited() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match net::connect(&self.network, Ipv4Addr::LOCALHOST.into(), port).await {
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                self.dial_ipv6(port).await.map_err(|_| refused)
            }
            answer => answer,
        }
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        let (this, lease) = (self.this()?, self.lease()?);
        run_detached(async move {
            let mut frozen = this.frozen.lock().await;
            if *frozen {
                return Ok(());
            }
            this.stop_vm().await?;
            lease.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
            *frozen = true;
            // Outgoing connections are closed now, so that a thaw and a restore find the same.
            this.with_gateway(Gateway::cut);
            Ok(())
        })
        .await
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        let (this, lease) = (self.this()?, self.lease()?);
        run_detached(async move {
            let mut frozen = this.frozen.lock().await;
            if !*frozen {
                return Ok(());
            }
            lease.group.set_frozen(false).await.map_err(EngineError::kernel("thaw"))?;
            this.resume_vm().await?;
            *frozen = false;
            Ok(())
        })
        .await
    }

    async fn capture(
        &self,
        snapshot_id: SnapshotId,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotInfo, EngineError> {
        let this = self.this()?;
        let snapshot = SnapshotFiles::of_snapshot(&this.lease()?.host, snapshot_id);
        run_detached(async move { capture::capture(&this, &snapshot, memory, durability).await }).await
    }

    async fn export_layer(&self, target: &Path) -> Result<(), EngineError> {
        let (this, target) = (self.this()?, target.to_owned());
        run_detached(async move { capture::export_layer(&this, target).await }).await
    }

    async fn stats(&self) -> Result<Stats, EngineError> {
        let lease = self.lease()?;
        let read = tokio::task::spawn_blocking(move || lease.group.stats()).await;
        let stats =
            read.map_err(|_| EngineError::NotFound)?.map_err(EngineError::kernel("read statistics"))?;
        // The group's limit includes QEMU's own memory; the sandbox's limit does not.
        Ok(Stats { memory_limit_bytes: u64::from(self.vm_spec.size.memory_mib) << 20, ..stats })
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

    fn private_dir(&self) -> PathBuf {
        self.private.clone()
    }
}
