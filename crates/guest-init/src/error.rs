//! Errors in the guest. They are reported to the host's log, so the remedies are the host's.

use std::io;

use guest_api::BootError;

/// Why the guest cannot become a sandbox, or did not handle a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The kernel command line lacks boot options.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The kernel refused a step.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// The step.
        what: String,
        /// The error.
        source: io::Error,
    },
    /// A device that the host should have attached is missing.
    #[error("{0}; attach it and start the guest again")]
    Missing(&'static str),
    /// A request that is not valid.
    #[error("{0}")]
    Request(String),
    /// envd could not be executed.
    #[error("envd was not started: {0}")]
    Envd(String),
    /// envd has ended, and the sandbox with it.
    #[error("envd has ended")]
    Ended,
}

impl InitError {
    /// Returns a function that wraps an error of the step `what`.
    pub(crate) fn kernel<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { what: what.into(), source: source.into() }
    }
}
