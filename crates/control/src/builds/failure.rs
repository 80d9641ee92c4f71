//! Why a build did not come to its end, in the words its owner reads.
//! A failure belongs to a step where one is to blame: `base`, a number, or `finalize`.
//! What went wrong on our side is told too: on one's own machine there is nobody else to ask.

use layers::LayerError;
use store::{BuildFailure, StoreError};
use template::steps::StepError;

use crate::ControlError;
use crate::envd::EnvdError;

/// A failure whose step is known to whoever carries it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    pub(crate) fn at(self, step: &str) -> BuildFailure {
        BuildFailure { message: self.0, step: Some(step.to_owned()) }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self(error.to_string())
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        Self(error.to_string())
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self(error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed during a build");
        Self(error.to_string())
    }
}

impl From<EnvdError> for Failure {
    fn from(error: EnvdError) -> Self {
        match error {
            EnvdError::Refused { .. } => Self(format!("command failed: {error}")),
            _ => Self(format!("the build's sandbox failed: {error}")),
        }
    }
}
