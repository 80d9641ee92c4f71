//! [`ControlError`] and [`AuthError`]: what can go wrong in the control plane, by what the caller can do about it. Messages are shown to
//! the caller; `api` adds the HTTP status. Causes that only the operator may see are logged where they happen.

use builds::BuildError;
use catalog::CatalogError;
use events::EventError;
use ids::SandboxId;
use limits::LimitError;
use store::StoreError;

/// A refused or failed call.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The sandbox is unknown, has ended, or is another team's; the caller cannot tell which.
    #[error("Sandbox \"{0}\" doesn't exist or you don't have access to it")]
    SandboxNotFound(SandboxId),
    /// There is no such template that the caller may see.
    #[error("template '{0}' not found")]
    TemplateNotFound(String),
    /// The template has no ready build with this tag.
    #[error("tag '{tag}' does not exist for template '{template}'")]
    TagNotFound {
        /// The tag asked for.
        tag: String,
        /// The template asked for.
        template: String,
    },
    /// The snapshot was deleted meanwhile.
    #[error("the snapshot does not exist any more")]
    SnapshotGone,
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// No such team.
    #[error("Team not found")]
    TeamNotFound,
    /// No such key.
    #[error("API key not found")]
    KeyNotFound,
    /// The object does not exist, or is another team's.
    #[error("{0}")]
    NotFound(&'static str),
    /// The state of the object does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The same idempotency key came with another body.
    #[error("the Idempotency-Key was used before with a different request body")]
    IdempotencyMismatch,
    /// The first request with this idempotency key is still in progress.
    #[error("a request with the same Idempotency-Key is still in progress")]
    IdempotencyInProgress,
    /// The team has this many running sandboxes, which is its limit.
    #[error(
        "you have reached the maximum number of concurrent sandboxes ({0}); end one or have the limit of your \
         team raised"
    )]
    TeamLimit(u32),
    /// The team has this many builds in progress, which is its limit.
    #[error(
        "you have reached the maximum number of concurrent template builds ({0}); wait for one to end or have the \
         limit of your team raised"
    )]
    BuildLimit(u32),
    /// Nothing was started; the same call may succeed later.
    #[error("Failed to place sandbox: not enough capacity: {0}")]
    Capacity(String),
    /// The start took too long and was undone; the same call may succeed later.
    #[error("Failed to place sandbox: placement timed out: {0}")]
    StartTimeout(String),
    /// The start failed and was undone.
    #[error("Failed to place sandbox: {0}")]
    StartFailed(String),
    /// The start will fail again until the operator changes something.
    #[error("Failed to place sandbox: {0}")]
    StartRefused(String),
    /// This server does not support it; the text says what is missing.
    #[error("{0}")]
    Unsupported(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The sandbox's envd does not answer, and the call needs it.
    #[error("{0}")]
    EnvdSilent(String),
    /// The sandbox could not be captured; it is as it was before.
    #[error("{0}")]
    CaptureFailed(String),
    /// The sandbox cannot be captured because of what its programs do; the text names a way out. It is as it was before.
    #[error("{0}")]
    Uncapturable(String),
    /// The server or its engine failed in something other than a start. The text is a whole sentence.
    #[error("{0}")]
    Engine(&'static str),
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}

impl From<CatalogError> for ControlError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Invalid(text) => Self::Invalid(text),
            CatalogError::TemplateNotFound(template) => Self::TemplateNotFound(template),
            CatalogError::TagNotFound { tag, template } => Self::TagNotFound { tag, template },
            CatalogError::Store(error) => Self::Store(error),
        }
    }
}

impl From<LimitError> for ControlError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::Quota(limit) => Self::TeamLimit(limit),
            LimitError::QueueFull(_) => Self::Capacity(error.to_string()),
            LimitError::Closed => Self::ShuttingDown,
            LimitError::Size(text) => Self::Invalid(text),
        }
    }
}

impl From<BuildError> for ControlError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Invalid(text) => Self::Invalid(text),
            BuildError::Conflict(text) => Self::Conflict(text),
            BuildError::Catalog(error) => error.into(),
            BuildError::TooMany(limit) => Self::BuildLimit(limit),
            BuildError::LayersGone => Self::SnapshotGone,
            BuildError::Unsupported(text) => Self::Unsupported(text),
            BuildError::Dockerfile => {
                Self::Engine("failed to store the Dockerfile of the template; see the server's log")
            }
            BuildError::Store(error) => Self::Store(error),
        }
    }
}

impl From<EventError> for ControlError {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Invalid(text) => Self::Invalid(text),
            EventError::WebhookNotFound => Self::NotFound("Webhook not found"),
            EventError::Store(error) => Self::Store(error),
        }
    }
}

/// Why a caller could not be authenticated.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The key does not begin with `e2b_`.
    #[error("authorization header is malformed")]
    Malformed,
    /// The part after the prefix is not hexadecimal.
    #[error("Invalid API key format")]
    Format,
    /// No such key.
    #[error("Cannot get the team for the given API key")]
    Unknown,
    /// The part after an access token's prefix is not hexadecimal.
    #[error("Invalid access token format")]
    TokenFormat,
    /// No such access token.
    #[error("Cannot get the user for the given access token")]
    TokenUnknown,
    /// The token belongs to another authentication provider.
    #[error("Backend authentication failed")]
    Provider,
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}
