//! The life of a sandbox's first process, from the handle on it to the moment everything of it is given back.
//! Its end is noticed whoever caused it: first the news goes out, so that streams are cut at once, then the engine cleans.
//! A server that leaves a sandbox to its successor stops watching and ends nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use engine::{EngineError, ExitReason};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::exit_reason;

const END_TIMEOUT: Duration = Duration::from_secs(20);

/// See the module's text.
#[derive(Debug)]
pub struct Life {
    pidfd: AsyncFd<OwnedFd>,
    exit: watch::Sender<Option<ExitReason>>,
    /// Once nothing of it is alive and everything is given back: true. False when a process of it does not die.
    released: watch::Sender<Option<bool>>,
    left: CancellationToken,
}

impl Life {
    /// Begins to watch over a running process.
    ///
    /// # Errors
    /// The descriptor cannot be registered with the runtime.
    pub fn of(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self {
            pidfd,
            exit: watch::Sender::new(None),
            released: watch::Sender::new(None),
            left: CancellationToken::new(),
        })
    }

    /// Waits for the end.
    pub async fn ended(&self) -> ExitReason {
        match self.pidfd.readable().await {
            Ok(_) => exit_reason(self.pidfd.get_ref()),
            Err(error) => {
                warn!(%error, "a sandbox can no longer be watched");
                ExitReason::Unknown
            }
        }
    }

    /// Tells everyone that it has ended.
    pub fn tell(&self, reason: ExitReason) {
        self.exit.send_replace(Some(reason));
    }

    /// Says that everything was given back, or that a process of it does not die.
    pub fn release(&self, is_complete: bool) {
        self.released.send_replace(Some(is_complete));
    }

    /// Becomes `Some` once it has ended.
    #[must_use]
    pub fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.subscribe()
    }

    /// Whether its end was told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Cancelled once the sandbox is left to a later server.
    #[must_use]
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// Stops watching, for a later server to go on.
    pub fn leave(&self) {
        self.left.cancel();
    }

    /// Ends it and waits until everything is given back; ending an ended one is a success.
    ///
    /// # Errors
    /// A process does not die, or it all takes too long.
    pub async fn kill(&self) -> Result<(), EngineError> {
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
}
