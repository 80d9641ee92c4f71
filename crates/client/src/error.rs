//! The error of this crate. Its variants are the cases that programs handle differently.
//! Messages of the server are passed on.
//! REST statuses and RPC codes with the same meaning become the same variant.

use connectrpc::{ConnectError, ErrorCode};
use http::StatusCode;

use crate::Output;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option or environment variable is missing or malformed.
    #[error("{0}")]
    Config(String),
    /// The key, or a sandbox's token, was refused.
    #[error("not authorized: {0}; check the API key")]
    Unauthorized(String),
    /// The sandbox, template, key, process or file does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The server rejects the request as invalid.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request conflicts with the current state: the object exists already, or is changing at the moment.
    #[error("{0}")]
    Conflict(String),
    /// A limit of the team or server is reached; the request may succeed later.
    #[error("limit reached: {0}")]
    RateLimit(String),
    /// The sandbox's disk is full.
    #[error("the sandbox's disk is full: {0}")]
    NotEnoughSpace(String),
    /// The call exceeded its time limit.
    #[error("timed out: {0}")]
    Timeout(String),
    /// The sandbox has ended.
    #[error("the sandbox was killed or reached its end of life")]
    SandboxEnded,
    /// The server could not be reached, or the connection broke.
    #[error("{address} cannot be reached: {message}")]
    Unreachable {
        /// Scheme, host and port.
        address: String,
        /// The system's error.
        message: String,
    },
    /// A command failed whose exit was checked.
    #[error("the command ended with {exit}{stderr}", exit = .0.exit, stderr = excerpt(.0))]
    CommandFailed(Box<Output>),
    /// The server failed.
    #[error("the server answered {code}: {message}")]
    Server {
        /// HTTP status or RPC code.
        code: String,
        /// The server's message.
        message: String,
    },
    /// The server's response is malformed or unexpected.
    #[error("unexpected response: {0}")]
    Protocol(String),
}

fn excerpt(output: &Output) -> String {
    match output.stderr_text().trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl Error {
    /// Maps an HTTP status and the `message` of its JSON body.
    pub(crate) fn from_status(status: StatusCode, message: String) -> Self {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Unauthorized(message),
            StatusCode::NOT_FOUND => Self::NotFound(message),
            StatusCode::BAD_REQUEST => Self::InvalidArgument(message),
            StatusCode::CONFLICT => Self::Conflict(message),
            StatusCode::TOO_MANY_REQUESTS => Self::RateLimit(message),
            StatusCode::INSUFFICIENT_STORAGE => Self::NotEnoughSpace(message),
            _ => Self::Server { code: status.as_u16().to_string(), message },
        }
    }

    /// Maps an error that is part of a response, beside results.
    pub(crate) fn from_code(code: u16, message: String) -> Self {
        match StatusCode::from_u16(code) {
            Ok(status) => Self::from_status(status, message),
            Err(_) => Self::Server { code: code.to_string(), message },
        }
    }

    /// Maps an RPC error that envd sent.
    pub(crate) fn from_rpc(error: &ConnectError) -> Self {
        let message = error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned());
        match error.code {
            ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => Self::Unauthorized(message),
            ErrorCode::NotFound => Self::NotFound(message),
            ErrorCode::InvalidArgument => Self::InvalidArgument(message),
            ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition | ErrorCode::Aborted => {
                Self::Conflict(message)
            }
            ErrorCode::ResourceExhausted => Self::RateLimit(message),
            ErrorCode::DeadlineExceeded | ErrorCode::Canceled => Self::Timeout(message),
            code => Self::Server { code: code.as_str().to_owned(), message },
        }
    }
}
