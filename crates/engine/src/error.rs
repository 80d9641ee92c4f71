//! [`EngineError`]: what can go wrong in an engine, by what the caller can do about it.
//! Messages name only this layer; the cause is in the error's source.

use std::io;

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
    /// Returns a function for `map_err` that names the step in which an I/O error happened.
    pub fn kernel<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { step, source: source.into() }
    }
}
