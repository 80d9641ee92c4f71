//! [`MainProcess`]: follows a sandbox's main process from its start until all resources of the sandbox are released.
//! The main process is PID 1 of a container, or the QEMU of a VM. When it ends, for whatever reason, the exit is announced first,
//! so that open streams are cut at once; then the engine cleans up.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use engine::{EngineError, ExitReason};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{HostLease, HostResources, exit_reason};

const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// The main process of a sandbox, its exit, and whether everything that the sandbox held is released.
#[derive(Debug)]
pub struct MainProcess {
    pidfd: AsyncFd<OwnedFd>,
    exit: watch::Sender<Option<ExitReason>>,
    /// `Some(true)` once no process of the sandbox is alive and everything is released; `Some(false)` while a process does not die.
    released: watch::Sender<Option<bool>>,
    left: CancellationToken,
}

impl MainProcess {
    /// Registers a running process with the runtime.
    ///
    /// # Errors
    /// The descriptor cannot be registered.
    pub fn new(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self {
            pidfd,
            exit: watch::Sender::new(None),
            released: watch::Sender::new(None),
            left: CancellationToken::new(),
        })
    }

    /// Waits for the process's end; returns early if the sandbox is left running for a later server. When the process has ended, calls
    /// `on_exit` with the reason, announces the exit, and then runs the clean-up that `on_exit` returned, on a thread that may block.
    /// The clean-up returns the lease of a sandbox of which a process does not die; it is held until that has ended.
    pub async fn follow<C, H>(&self, on_exit: impl FnOnce(&ExitReason) -> C)
    where
        C: FnOnce() -> Option<Arc<HostLease<H>>> + Send + 'static,
        H: Deref<Target = HostResources> + Send + Sync + 'static,
    {
        let left = self.left.clone();
        let followed = left.run_until_cancelled_owned(async {
            let reason = self.wait().await;
            let clean_up = on_exit(&reason);
            self.exit.send_replace(Some(reason));
            if let Ok(Some(lease)) = tokio::task::spawn_blocking(clean_up).await {
                self.released.send_replace(Some(false));
                lease.release_when_empty().await;
            }
            self.released.send_replace(Some(true));
        });
        followed.await;
    }

    async fn wait(&self) -> ExitReason {
        match self.pidfd.readable().await {
            Ok(_) => exit_reason(self.pidfd.get_ref()),
            Err(error) => {
                warn!(%error, "a sandbox's process can no longer be watched");
                ExitReason::Unknown
            }
        }
    }

    /// Returns a receiver whose value becomes `Some` once the process has ended.
    #[must_use]
    pub fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.subscribe()
    }

    /// Returns whether the exit was announced.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Stops following the process and does not clean up when it ends: a later server will adopt the sandbox.
    pub fn leave(&self) {
        self.left.cancel();
    }

    /// Kills the process and waits until everything that the sandbox held is released. Succeeds if it has already ended.
    ///
    /// # Errors
    /// A process does not die, or the clean-up takes too long.
    pub async fn kill(&self) -> Result<(), EngineError> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(EngineError::Kernel { step: "kill PID 1", source: error.into() }),
        }
        let mut released = self.released.subscribe();
        match tokio::time::timeout(KILL_TIMEOUT, released.wait_for(Option::is_some)).await {
            Ok(Ok(released)) if *released == Some(false) => {
                Err(EngineError::Timeout("ending the sandbox: a process of it does not die"))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Timeout("ending the sandbox")),
        }
    }

    /// Waits, however long, until everything that the sandbox held is released.
    pub async fn released(&self) {
        // The sender lives as long as `self`: the wait cannot fail.
        let _ = self.released.subscribe().wait_for(|released| *released == Some(true)).await;
    }
}
