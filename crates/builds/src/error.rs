//! [`BuildError`] is why a call is refused; [`StepFailure`] is why a build failed, in the words that its owner reads in the log.
//! Failures on the server's side are shown too: on a self-hosted server the owner is often the operator.

use catalog::CatalogError;
use layers::LayerError;
use limits::LimitError;
use oci::OciError;
use store::{BuildFailure, StoreError};
use template::steps::StepError;

/// Why a call about builds is refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It conflicts with something that exists.
    #[error("{0}")]
    Conflict(String),
    /// The template or tag cannot be found or used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The team has this many builds in progress, which is its limit.
    #[error(
        "you have reached the maximum number of concurrent template builds ({0}); wait for one to end or have the \
         limit of your team raised"
    )]
    TooMany(u32),
    /// A layer of the template does not exist any more.
    #[error("the snapshot does not exist any more")]
    LayersGone,
    /// This server does not build templates.
    #[error("{0}")]
    Unsupported(String),
    /// A build's Dockerfile could not be read or written.
    #[error("failed to store the Dockerfile of the template; see the server's log")]
    Dockerfile,
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}

impl From<LimitError> for BuildError {
    fn from(error: LimitError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Why a step of a build, or something it did, failed: the text for the build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure(pub String);

impl StepFailure {
    /// A failure with this text.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The failure of a build at the step `base`, `finalize` or a number.
    pub(crate) fn at(self, step: &str) -> BuildFailure {
        BuildFailure { message: self.0, step: Some(step.to_owned()) }
    }
}

impl From<CatalogError> for StepFailure {
    fn from(error: CatalogError) -> Self {
        Self(error.to_string())
    }
}

impl From<LimitError> for StepFailure {
    fn from(error: LimitError) -> Self {
        Self(error.to_string())
    }
}

impl From<StepError> for StepFailure {
    fn from(error: StepError) -> Self {
        Self(error.to_string())
    }
}

impl From<LayerError> for StepFailure {
    fn from(error: LayerError) -> Self {
        tracing::warn!(%error, "a layer of a build could not be stored");
        match error {
            LayerError::TooDeep { .. } => Self::new(
                "directories are nested deeper than a layer allows (paths of 4,000 bytes); remove them first",
            ),
            _ => Self::new(ON_THE_HOST),
        }
    }
}

impl From<OciError> for StepFailure {
    fn from(error: OciError) -> Self {
        if error.is_of_the_host() {
            tracing::warn!(%error, "an image or archive could not be unpacked in a build");
            return Self::new(ON_THE_HOST);
        }
        Self(error.to_string())
    }
}

impl From<std::io::Error> for StepFailure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::FileTooLarge => Self::new("COPY: the files are larger than 16 GiB"),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::new("the server's disk is full")
            }
            _ => {
                tracing::warn!(%error, "failed to store files of a build");
                Self::new(ON_THE_HOST)
            }
        }
    }
}

/// What users are told of failures whose texts name files of the host.
pub(crate) const ON_THE_HOST: &str =
    "the server failed to store files of the build; its operator finds the reason in its log";
