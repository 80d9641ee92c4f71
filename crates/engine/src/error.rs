//! What can go wrong in an engine, by what the caller can do about it.
//! Messages name only this layer; sources carry the cause.
//! HTTP status codes are chosen elsewhere.

use std::io;

/// An engine's failure.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such sandbox, or it has ended.
    #[error("the sandbox is not running")]
    NotFound,
    /// Nothing was changed; the same call may work later.
    #[error("not enough capacity: {0}")]
    Exhausted(String),
    /// The engine cannot do this at all.
    #[error("this engine does not support {0}")]
    Unsupported(&'static str),
    /// The template cannot be used.
    #[error("the template cannot be used: {0}")]
    Template(String),
    /// The host lacks something; the text names the remedy.
    #[error("{what}; {remedy}")]
    Host {
        /// What is missing or refused.
        what: String,
        /// What the operator can do.
        remedy: String,
    },
    /// A kernel call failed.
    #[error("{step}: {source}")]
    Kernel {
        /// The step that failed, such as `mount overlay`.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A sandbox's state could not be captured; it is as it was before.
    #[error("the sandbox could not be captured: {0}")]
    Capture(String),
    /// A captured state could not be brought back; it is still there.
    #[error("the sandbox could not be restored: {0}")]
    Restore(String),
    /// PID 1 ended before the sandbox was up.
    #[error("the sandbox ended while starting: {0}")]
    Died(String),
    /// A capture that an earlier server began is still under way.
    #[error(
        "a capture that an earlier server began is still under way; it is waited for, and in the end cut off"
    )]
    Capturing,
    /// Something did not finish in its time.
    #[error("{0} did not finish in time")]
    Timeout(&'static str),
}

impl EngineError {
    /// For `map_err`: names the step that an I/O error belongs to.
    pub fn kernel<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { step, source: source.into() }
    }
}
