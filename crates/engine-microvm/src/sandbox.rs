//! A running machine: how it is reached, stopped, measured and ended.
//! Stopping is in two steps: the guest stops its user code and writes its disk, then the virtual processors stop. A guest that does
//! not answer is stopped all the same: it harms nobody but itself.
//! The same code serves machines started by this server and those adopted from an earlier one.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use engine::{
    Durability, EgressPolicy, EngineError, ExitReason, Sandbox, SandboxId, SnapshotId, SnapshotInfo, Stats,
};
use engine_host::{Life, tree_of};
use guest_api::network::GUEST_V4;
use guest_api::relay::{self, MAX_LINE, RELAY_PORT, RelayRequest};
use net::Gateway;
use sys::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::base_images::{self, BaseImage};
use crate::capture;
use crate::claim::Claim;
use crate::record::VmSpec;
use crate::snapshot::SnapshotFiles;
use crate::vm::Vm;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct MicrovmSandbox {
    /// For work that must not end with whoever asked for it.
    own: Weak<Self>,
    pub(crate) id: SandboxId,
    pub(crate) pid: i32,
    pub(crate) vm: Vm,
    pub(crate) vm_spec: VmSpec,
    /// Whether it is frozen. RunningResources by whoever stops it or lets it go on.
    pub(crate) frozen: tokio::sync::Mutex<bool>,
    is_quiesced: AtomicBool,
    private: PathBuf,
    life: Life,
    network: Namespace,
    /// Present while it runs.
    held: Mutex<Option<RunningResources>>,
}

/// What a running machine is made of.
#[derive(Debug)]
pub(crate) struct SandboxParts {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) network: Namespace,
    pub(crate) vm: Vm,
    /// None when it could not be opened at an adoption: then nothing gets out.
    pub(crate) gateway: Option<Gateway>,
    pub(crate) claim: Claim,
    pub(crate) vm_spec: VmSpec,
}

/// What goes away with the machine.
#[derive(Debug)]
struct RunningResources {
    gateway: Option<Gateway>,
    claim: Arc<Claim>,
    base: BaseImage,
}

impl MicrovmSandbox {
    /// Begins to watch over a running machine.
    pub(crate) fn watch(id: SandboxId, parts: SandboxParts) -> io::Result<Arc<Self>> {
        let SandboxParts { pid, pidfd, network, vm, gateway, claim, vm_spec } = parts;
        let (host, life) = (claim.host.clone(), Life::of(pidfd)?);
        let base = host.base_images.hold(&vm_spec.base);
        let sandbox = Arc::new_cyclic(|own| Self {
            own: own.clone(),
            private: host.trees.path(&tree_of(&id)),
            id: id.clone(),
            pid,
            vm,
            vm_spec,
            frozen: tokio::sync::Mutex::new(false),
            is_quiesced: AtomicBool::new(false),
            life,
            network,
            held: Mutex::new(Some(RunningResources { gateway, claim: Arc::new(claim), base })),
        });
        host.running.add(id, &sandbox);
        let follow = sandbox.clone().follow_to_the_end();
        tokio::spawn(sandbox.life.left().run_until_cancelled_owned(follow));
        Ok(sandbox)
    }

    async fn follow_to_the_end(self: Arc<Self>) {
        let reason = self.life.ended().await;
        debug!(sandbox = %self.id, ?reason, "machine ended");
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(host) = held.as_ref().map(|held| held.claim.host.clone()) else { return };
        host.running.remove(&self.id);
        // First the news, so that streams are cut at once; then the cleaning.
        self.life.tell(reason);
        let id = self.id.clone();
        let clean = move || {
            let emptied = held.as_ref().map_or(Ok(()), |held| held.claim.end_processes());
            if let Err(error) = &emptied {
                warn!(sandbox = %id, %error, "a process of an ended sandbox does not die");
            }
            // Ids and group first: the image is looked at without them.
            if let Some(base) = held.map(|held| held.base) {
                base_images::release(&host, base);
            }
            host.sockets(id.as_str()).remove();
            if let Err(error) = host.trees.discard(&tree_of(&id)) {
                warn!(sandbox = %id, %error, "a sandbox's files could not be discarded");
            }
            if let Err(error) = host.records.remove(&id) {
                warn!(sandbox = %id, %error, "a sandbox's record could not be removed");
            }
            emptied.is_ok()
        };
        let cleaned = tokio::task::spawn_blocking(clean).await;
        self.life.release(cleaned.unwrap_or(false));
    }

    /// Stops serving the sandbox without ending it, so that another server can adopt it.
    pub(crate) async fn leave(&self) {
        self.life.leave();
        self.vm.close().await;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(held) = held {
            held.claim.leave();
            if let Some(gateway) = held.gateway {
                gateway.stop().await;
            }
        }
    }

    pub(crate) fn claim(&self) -> Result<Arc<Claim>, EngineError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|held| held.claim.clone()).ok_or(EngineError::NotFound)
    }

    fn with_gateway(&self, action: impl FnOnce(&Gateway)) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gateway) = held.as_ref().and_then(|held| held.gateway.as_ref()) {
            action(gateway);
        }
    }

    fn own(&self) -> Result<Arc<Self>, EngineError> {
        self.own.upgrade().ok_or(EngineError::NotFound)
    }

    /// Stops user code, then the virtual processors.
    pub(crate) async fn stop_vm(&self) -> Result<(), EngineError> {
        let still = self.vm.guest_agent.quiesce().await;
        if let Err(reason) = &still {
            warn!(sandbox = %self.id, reason, "a guest does not stop by itself; what it has not written to its disk is in its memory only");
        }
        self.is_quiesced.store(still.is_ok(), Ordering::SeqCst);
        self.vm.monitor.stop().await
    }

    /// Whether user code stood still, as the guest says, when the processors were stopped. A copy of its memory goes on at that very
    /// point, before it has been given anything of its own.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.is_quiesced.load(Ordering::SeqCst)
    }

    /// Lets both go on.
    pub(crate) async fn resume_vm(&self) -> Result<(), EngineError> {
        self.vm.monitor.cont().await?;
        if let Err(reason) = self.vm.guest_agent.resume().await {
            warn!(sandbox = %self.id, reason, "a guest does not go on as told");
        }
        Ok(())
    }

    /// Connects to the agent's relay and asks for something.
    pub(crate) async fn relay(&self, request: RelayRequest) -> io::Result<TcpStream> {
        let mut stream = net::connect(&self.network, GUEST_V4.into(), RELAY_PORT).await?;
        stream.write_all(request.to_line().as_bytes()).await?;
        Ok(stream)
    }

    /// Through the relay, to what listens on `::1` only.
    async fn dial_ipv6(&self, port: u16) -> io::Result<TcpStream> {
        let mut stream = self.relay(RelayRequest::Connect(port)).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") && answer.len() < MAX_LINE {
            answer.push(stream.read_u8().await?);
        }
        if answer == relay::OK.as_bytes() { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }
}

/// Runs `work` to its end even if the caller goes away.
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
        if self.life.is_over() {
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
        let (own, claim) = (self.own()?, self.claim()?);
        run_detached(async move {
            let mut frozen = own.frozen.lock().await;
            if *frozen {
                return Ok(());
            }
            own.stop_vm().await?;
            claim.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
            *frozen = true;
            // Whether it is thawed or restored later, it finds the same: what it had open to the outside is closed.
            own.with_gateway(Gateway::cut);
            Ok(())
        })
        .await
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        let (own, claim) = (self.own()?, self.claim()?);
        run_detached(async move {
            let mut frozen = own.frozen.lock().await;
            if !*frozen {
                return Ok(());
            }
            claim.group.set_frozen(false).await.map_err(EngineError::kernel("thaw"))?;
            own.resume_vm().await?;
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
        let own = self.own()?;
        let snapshot = SnapshotFiles::of_snapshot(&own.claim()?.host, snapshot_id);
        run_detached(async move { capture::capture(&own, &snapshot, memory, durability).await }).await
    }

    async fn export_layer(&self, target: &Path) -> Result<(), EngineError> {
        let (own, target) = (self.own()?, target.to_owned());
        run_detached(async move { capture::export_layer(&own, target).await }).await
    }

    async fn stats(&self) -> Result<Stats, EngineError> {
        let claim = self.claim()?;
        let read = tokio::task::spawn_blocking(move || claim.group.stats()).await;
        let stats =
            read.map_err(|_| EngineError::NotFound)?.map_err(EngineError::kernel("read statistics"))?;
        // The group's limit has room for QEMU itself.
        Ok(Stats { memory_limit_bytes: u64::from(self.vm_spec.size.memory_mib) << 20, ..stats })
    }

    fn set_egress(&self, policy: EgressPolicy) {
        self.with_gateway(|gateway| gateway.set_policy(policy));
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.life.kill().await
    }

    fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.life.exit()
    }

    fn private_dir(&self) -> PathBuf {
        self.private.clone()
    }
}
