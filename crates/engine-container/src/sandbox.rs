//! A running container: how it is reached, stopped, measured and ended.
//! Its end is noticed through PID 1's pidfd, whoever caused it; everything it held on the host is then given back.
//! The same code serves sandboxes started by this server and those adopted from an earlier one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use engine::{
    Durability, EgressPolicy, EngineError, ExitReason, Sandbox, SandboxId, SnapshotId, SnapshotInfo, Stats,
};
use engine_host::{Life, tree_of};
use net::Gateway;
use sys::Namespace;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::capture;
use crate::host::Host;
use crate::slot::Claim;

/// A running container.
#[derive(Debug)]
pub(crate) struct ContainerSandbox {
    id: SandboxId,
    private: PathBuf,
    life: Life,
    network: Namespace,
    /// Present while it runs.
    held: Mutex<Option<Held>>,
}

/// What goes away with the sandbox.
#[derive(Debug)]
struct Held {
    /// None when something inside took the gateway's ports while no server was there: then nothing gets out.
    gateway: Option<Gateway>,
    claim: Arc<Claim>,
}

impl ContainerSandbox {
    /// Begins to watch over a running PID 1.
    pub(crate) fn watch(
        host: Arc<Host>,
        id: SandboxId,
        pidfd: OwnedFd,
        network: Namespace,
        gateway: Option<Gateway>,
        claim: Claim,
    ) -> io::Result<Arc<Self>> {
        let sandbox = Arc::new(Self {
            private: host.trees.path(&tree_of(&id)),
            id: id.clone(),
            life: Life::of(pidfd)?,
            network,
            held: Mutex::new(Some(Held { gateway, claim: Arc::new(claim) })),
        });
        host.running.add(id, &sandbox);
        let follow = sandbox.clone().follow_to_the_end(host);
        tokio::spawn(sandbox.life.left().run_until_cancelled_owned(follow));
        Ok(sandbox)
    }

    async fn follow_to_the_end(self: Arc<Self>, host: Arc<Host>) {
        let reason = self.life.ended().await;
        debug!(sandbox = %self.id, ?reason, "sandbox ended");
        host.running.remove(&self.id);
        // First the news, so that streams are cut at once; then the cleaning.
        self.life.tell(reason);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let id = self.id.clone();
        let clean = move || {
            // PID 1 takes the others with it. One that hangs in the kernel is left to the sweep of a later start.
            let emptied = held.as_ref().map_or(Ok(()), |held| held.claim.end_processes());
            if let Err(error) = &emptied {
                warn!(sandbox = %id, %error, "a process of an ended sandbox does not die");
            }
            drop(held);
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
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(held) = held {
            held.claim.leave();
            if let Some(gateway) = held.gateway {
                gateway.stop().await;
            }
        }
    }

    fn claim(&self) -> Result<Arc<Claim>, EngineError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|held| held.claim.clone()).ok_or(EngineError::NotFound)
    }
}

#[async_trait]
impl Sandbox for ContainerSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        if self.life.is_over() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        net::dial(&self.network, port).await
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.claim()?.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))?;
        // Whether it is thawed or restored later, it finds the same: what it had open to the outside is closed.
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gateway) = held.as_ref().and_then(|held| held.gateway.as_ref()) {
            gateway.cut();
        }
        Ok(())
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.claim()?.group.set_frozen(false).await.map_err(EngineError::kernel("thaw"))
    }

    async fn capture(
        &self,
        snapshot: SnapshotId,
        memory: bool,
        durability: Durability,
    ) -> Result<SnapshotInfo, EngineError> {
        capture::capture(self.claim()?, self.id.clone(), snapshot, memory, durability).await
    }

    async fn export_layer(&self, target: &Path) -> Result<(), EngineError> {
        capture::export_layer(self.claim()?, self.private.join("upper"), target.to_owned()).await
    }

    async fn stats(&self) -> Result<Stats, EngineError> {
        let claim = self.claim()?;
        let read = tokio::task::spawn_blocking(move || claim.group.stats()).await;
        read.map_err(|_| EngineError::NotFound)?.map_err(EngineError::kernel("read statistics"))
    }

    fn set_egress(&self, policy: EgressPolicy) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gateway) = held.as_ref().and_then(|held| held.gateway.as_ref()) {
            gateway.set_policy(policy);
        }
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
