//! A running container: how it is reached, stopped, measured and ended.
//! Its end is noticed through PID 1's pidfd, whoever caused it; everything it held on the host is then given back.
//! The same code serves sandboxes started by this server and those adopted from an earlier one.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Captured, EgressPolicy, EngineError, ExitReason, Sandbox, SandboxId, SnapshotId, Stats};
use engine_host::exit_reason;
use net::Gateway;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use sys::Namespace;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::capture;
use crate::host::Host;
use crate::private::volume_of;
use crate::slot::Claim;

const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A running container.
#[derive(Debug)]
pub(crate) struct ContainerSandbox {
    id: SandboxId,
    private: PathBuf,
    pidfd: AsyncFd<OwnedFd>,
    network: Namespace,
    /// Present while it runs.
    held: Mutex<Option<Held>>,
    exit: watch::Sender<Option<ExitReason>>,
    /// Once nothing of it is alive and everything is given back: true. False when a process of it does not die.
    released: watch::Sender<Option<bool>>,
    /// Cancelled when the server leaves the sandbox to its successor.
    left: CancellationToken,
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
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        let sandbox = Arc::new(Self {
            private: host.volumes.path(&volume_of(&id)),
            id,
            pidfd,
            network,
            held: Mutex::new(Some(Held { gateway, claim: Arc::new(claim) })),
            exit: watch::Sender::new(None),
            released: watch::Sender::new(None),
            left: CancellationToken::new(),
        });
        host.running.add(&sandbox);
        let follow = sandbox.clone().follow_to_the_end(host);
        tokio::spawn(sandbox.left.clone().run_until_cancelled_owned(follow));
        Ok(sandbox)
    }

    async fn follow_to_the_end(self: Arc<Self>, host: Arc<Host>) {
        let reason = match self.pidfd.readable().await {
            Ok(_) => exit_reason(self.pidfd.get_ref()),
            Err(error) => {
                warn!(sandbox = %self.id, %error, "a sandbox can no longer be watched");
                ExitReason::Unknown
            }
        };
        debug!(sandbox = %self.id, ?reason, "sandbox ended");
        host.running.remove(&self.id);
        // First the news, so that streams are cut at once; then the cleaning.
        self.exit.send_replace(Some(reason));
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let id = self.id.clone();
        let clean = move || {
            // PID 1 takes the others with it. One that hangs in the kernel is left to the sweep of a later start.
            let emptied = held.as_ref().map_or(Ok(()), |held| held.claim.end_processes());
            if let Err(error) = &emptied {
                warn!(sandbox = %id, %error, "a process of an ended sandbox does not die");
            }
            drop(held);
            if let Err(error) = host.volumes.discard(&volume_of(&id)) {
                warn!(sandbox = %id, %error, "a sandbox's files could not be discarded");
            }
            if let Err(error) = host.records.remove(&id) {
                warn!(sandbox = %id, %error, "a sandbox's record could not be removed");
            }
            emptied.is_ok()
        };
        let cleaned = tokio::task::spawn_blocking(clean).await;
        self.released.send_replace(Some(cleaned.unwrap_or(false)));
    }

    /// Stops serving the sandbox without ending it, so that another server can adopt it.
    async fn leave(&self) {
        self.left.cancel();
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

/// The sandboxes this server looks after.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<HashMap<SandboxId, Weak<ContainerSandbox>>>);

impl Running {
    fn add(&self, sandbox: &Arc<ContainerSandbox>) {
        self.lock().insert(sandbox.id.clone(), Arc::downgrade(sandbox));
    }

    fn remove(&self, id: &SandboxId) {
        self.lock().remove(id);
    }

    /// Leaves all of them to a later server.
    pub(crate) async fn leave(&self) {
        let all = std::mem::take(&mut *self.lock());
        for sandbox in all.values().filter_map(Weak::upgrade) {
            sandbox.leave().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Weak<ContainerSandbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sandbox for ContainerSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        if self.exit.borrow().is_some() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        net::dial(&self.network, port).await
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.claim()?.group.set_frozen(true).await.map_err(EngineError::kernel("freeze"))
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.claim()?.group.set_frozen(false).await.map_err(EngineError::kernel("thaw"))
    }

    async fn capture(&self, snapshot: SnapshotId, memory: bool) -> Result<Captured, EngineError> {
        capture::capture(self.claim()?, self.id.clone(), snapshot, memory).await
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
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(EngineError::Kernel { step: "kill PID 1", source: error.into() }),
        }
        let mut released = self.released.subscribe();
        match tokio::time::timeout(END_TIMEOUT, released.wait_for(Option::is_some)).await {
            Ok(Ok(released)) if *released == Some(false) => {
                Err(EngineError::Timeout("ending the sandbox: a process of it does not die"))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Timeout("ending the sandbox")),
        }
    }

    fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.subscribe()
    }

    fn private_dir(&self) -> PathBuf {
        self.private.clone()
    }
}
