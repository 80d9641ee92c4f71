//! [`EngineError`]: what can go wrong in an engine, by what the caller can do about it.
//! Messages name only this layer; the cause is in the error's source.

use std::io;

/// What clients are told of a full disk.
pub const DISK_FULL: &str =
    "the disk of sandboxes is full: end sandboxes, delete snapshots, or have the operator free space";

/// An engine's failure.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such sandbox or snapshot, or the sandbox has ended.
    #[error("the sandbox is not running")]
    NotFound,
    /// Nothing was changed; the same call may succeed later.
    #[error("not enough capacity: {0}")]
    Exhausted(String),
    /// The engine cannot do this at all.
    #[error("this engine does not support {0}")]
    Unsupported(&'static str),
    /// The template cannot be used.
    #[error("the template cannot be used: {0}")]
    Template(String),
    /// A volume cannot be mounted where it was asked for.
    #[error("a volume cannot be mounted at '{path}': {reason}")]
    Mount {
        /// The path inside the sandbox.
        path: String,
        /// Why.
        reason: String,
    },
    /// A snapshot's program holds a lock on this file of a volume, which another sandbox has now.
    #[error(
        "a program in it holds a lock on '{0}' in a volume, and another sandbox has that lock now: try again when it is free"
    )]
    Locked(String),
    /// The host lacks something; the text names the remedy.
    #[error("{what}; {remedy}")]
    Host {
        /// What is missing or refused.
        what: String,
        /// What the operator can do.
        remedy: String,
    },
    /// A system call failed.
    #[error("{step}: {source}")]
    Kernel {
        /// The step that failed, such as `mount overlay`.
        step: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// The sandbox could not be captured; it is as it was before.
    #[error("the sandbox could not be captured: {0}")]
    Capture(String),
    /// The sandbox could not be captured because of what it does; it is as it was before. The text is for its owner.
    #[error("the sandbox could not be captured: {0}")]
    Uncapturable(String),
    /// A snapshot could not be restored; the snapshot is unchanged.
    #[error("the sandbox could not be restored: {0}")]
    Restore(String),
    /// The sandbox's first process ended before the sandbox was ready.
    #[error("the sandbox ended while starting: {0}")]
    Died(String),
    /// A capture that an earlier server process began is still running.
    #[error(
        "a capture that an earlier server process began is still running; the server waits for it and kills it after a time limit"
    )]
    Capturing,
    /// Something did not finish within its time limit.
    #[error("{0} did not finish in time")]
    Timeout(&'static str),
}

impl EngineError {
    /// Returns what a client may know of it. Everything else, such as paths, process ids and the output of CRIU and QEMU, tells
    /// of the host, and is for the operator's log.
    #[must_use]
    pub fn for_clients(&self) -> String {
        let text = match self {
            Self::NotFound
            | Self::Exhausted(_)
            | Self::Unsupported(_)
            | Self::Mount { .. }
            | Self::Locked(_)
            | Self::Uncapturable(_)
            | Self::Timeout(_) => return self.to_string(),
            Self::Template(_) => "the template cannot be used",
            Self::Kernel { .. } if self.is_disk_full() => return DISK_FULL.to_owned(),
            Self::Host { .. } => "the host lacks something that it needs",
            Self::Kernel { .. } => "the host failed",
            Self::Capture(_) => "the sandbox could not be captured",
            Self::Restore(_) => "the sandbox could not be restored",
            Self::Died(_) => "the sandbox ended while starting",
            Self::Capturing => "the sandbox is still being captured",
        };
        format!("{text}; the operator of this server finds the reason in its log")
    }

    /// Whether a step failed because the disk, or the quota of all sandboxes, is used up.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let is_full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Kernel { source, .. } if is_full(source.kind()))
    }

    /// Makes an error of a capture of one that happened in it. Clients are told what they can do something about.
    #[must_use]
    pub fn in_capture(self) -> Self {
        match self {
            Self::Capture(_) | Self::Uncapturable(_) | Self::Exhausted(_) => self,
            other => Self::Capture(other.to_string()),
        }
    }

    /// Returns a function for `map_err` that names the step in which an I/O error happened.
    pub fn kernel<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { step, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_learn_nothing_of_the_host() {
        let full = EngineError::Kernel { step: "format a disk", source: io::ErrorKind::QuotaExceeded.into() };
        assert_eq!((full.is_disk_full(), full.for_clients().as_str()), (true, DISK_FULL));
        let secret = || "pid 4242: /var/lib/cofferdam".to_owned();
        for error in [
            EngineError::Template(secret()),
            EngineError::Host { what: secret(), remedy: secret() },
            EngineError::Kernel { step: "mount", source: io::Error::other(secret()) },
            EngineError::Capture(secret()),
            EngineError::Restore(secret()),
            EngineError::Died(secret()),
        ] {
            let text = error.for_clients();
            assert!(!text.contains("4242") && !text.contains("/var"), "{text}");
            assert!(text.contains("the operator of this server finds the reason in its log"), "{text}");
        }
        assert_eq!(
            EngineError::Exhausted("no slots".to_owned()).for_clients(),
            "not enough capacity: no slots"
        );
    }
}
