//! What can go wrong in a guest, for its host's log.
//! There is nobody inside who could repair anything, so the remedies are the host's.

use std::io;

use guest_api::BootError;

/// Why the guest cannot be a sandbox, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The command line is not as it must be.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The kernel refused something.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// Something that the host should have attached is not there.
    #[error("{0}; attach it and start the guest again")]
    Missing(&'static str),
    /// A request that cannot be carried out as it is.
    #[error("{0}")]
    Request(String),
    /// What becomes envd has failed.
    #[error("envd was not started: {0}")]
    Envd(String),
    /// The sandbox is over.
    #[error("envd has ended")]
    Ended,
}

impl InitError {
    /// An answer of the kernel to an attempt to do `what`.
    pub(crate) fn kernel<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { what: what.into(), source: source.into() }
    }
}
