//! What can go wrong in the control plane, by what the caller can do about it.
//! The message is fit for the caller's eyes; `api` adds the status.
//! Causes that only the operator should see are logged where they happen.

use ids::SandboxId;
use store::StoreError;

/// A refused or failed call.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Unknown, ended, or another team's: the caller cannot tell which.
    #[error("Sandbox \"{0}\" doesn't exist or you don't have access to it")]
    SandboxNotFound(SandboxId),
    /// The caller cannot see such a template.
    #[error("template '{0}' not found")]
    TemplateNotFound(String),
    /// The template has no ready build under this tag.
    #[error("tag '{tag}' does not exist for template '{template}'")]
    TagNotFound {
        /// The tag asked for.
        tag: String,
        /// The template asked for.
        template: String,
    },
    /// What the sandbox was to go on from was deleted meanwhile.
    #[error("the snapshot does not exist any more")]
    SnapshotGone,
    /// It exists and is not the caller's.
    #[error("{0}")]
    Forbidden(&'static str),
    /// No such team.
    #[error("Team not found")]
    TeamNotFound,
    /// No such key.
    #[error("API key not found")]
    KeyNotFound,
    /// There is no such thing, or it is another team's.
    #[error("{0}")]
    NotFound(&'static str),
    /// The sandbox is in a state that does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The same idempotency key came with another body.
    #[error("the Idempotency-Key was used before with a different request body")]
    IdempotencyMismatch,
    /// The first request with this idempotency key is still at work.
    #[error("a request with the same Idempotency-Key is still in progress")]
    IdempotencyInProgress,
    /// The team has as many running sandboxes as it may.
    #[error(
        "you have reached the maximum number of concurrent sandboxes ({0}); end one or have the limit of your \
         team raised"
    )]
    TeamLimit(u32),
    /// The team has as many template builds under way as it may.
    #[error(
        "you have reached the maximum number of concurrent template builds ({0}); wait for one to end or have the \
         limit of your team raised"
    )]
    BuildLimit(u32),
    /// Nothing was started; the same call may work in a moment.
    #[error("Failed to place sandbox: not enough capacity: {0}")]
    Capacity(String),
    /// Nothing is left of the attempt; the same call may work in a moment.
    #[error("Failed to place sandbox: placement timed out: {0}")]
    StartTimeout(String),
    /// Nothing is left of the attempt.
    #[error("Failed to place sandbox: {0}")]
    StartFailed(String),
    /// It will fail again until the operator mends something.
    #[error("Failed to place sandbox: {0}")]
    StartRefused(String),
    /// This server cannot do it; the text says what is missing.
    #[error("{0}")]
    Unsupported(String),
    /// The server is on its way down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The sandbox's agent does not answer, and what was asked for needs it.
    #[error("{0}")]
    AgentSilent(String),
    /// A sandbox's state could not be captured; it is as it was before.
    #[error("{0}")]
    CaptureFailed(String),
    /// The engine failed at something other than a start.
    #[error("the sandbox could not be {0}")]
    Engine(&'static str),
    /// The store failed; the cause is for the log.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}

/// Why a caller was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Not of the form `e2b_<hex>`: the prefix is missing.
    #[error("authorization header is malformed")]
    Malformed,
    /// What follows the prefix is not hexadecimal.
    #[error("Invalid API key format")]
    Format,
    /// No such key.
    #[error("Cannot get the team for the given API key")]
    Unknown,
    /// What follows an access token's prefix is not hexadecimal.
    #[error("Invalid access token format")]
    TokenFormat,
    /// No such access token.
    #[error("Cannot get the user for the given access token")]
    TokenUnknown,
    /// A token of somebody whose tokens are not known here.
    #[error("Backend authentication failed")]
    Provider,
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}
