//! The one error of this crate. Its variants are the cases a program treats differently.
//! Servers' messages are passed on; they are written to be read.
//! REST statuses and RPC codes that mean the same become the same variant.

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
    /// Sandbox, template, key, process or file is not there.
    #[error("{0}")]
    NotFound(String),
    /// The server does not accept what was asked for.
    #[error("{0}")]
    InvalidArgument(String),
    /// Something is in the way: it exists, or changes at the moment.
    #[error("{0}")]
    Conflict(String),
    /// A limit of the team or server is reached; later it may work.
    #[error("limit reached: {0}")]
    RateLimit(String),
    /// The sandbox's disk is full.
    #[error("the sandbox's disk is full: {0}")]
    NotEnoughSpace(String),
    /// The call took longer than it may.
    #[error("timed out: {0}")]
    Timeout(String),
    /// The sandbox has ended.
    #[error("the sandbox was killed or reached its end of life")]
    SandboxEnded,
    /// The server could not be reached or broke off.
    #[error("{address} cannot be reached: {message}")]
    Unreachable {
        /// Scheme, host and port.
        address: String,
        /// What the system said.
        message: String,
    },
    /// A checked command failed.
    #[error("the command ended with {exit}{stderr}", exit = .0.exit, stderr = excerpt(.0))]
    CommandFailed(Box<Output>),
    /// The server failed.
    #[error("the server answered {code}: {message}")]
    Server {
        /// HTTP status or RPC code.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The server's answer makes no sense to this client.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

fn excerpt(output: &Output) -> String {
    match output.stderr_text().trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl Error {
    /// From an HTTP status and the `message` of its JSON body.
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

    /// From an error that stands in an answer beside results.
    pub(crate) fn from_code(code: u16, message: String) -> Self {
        match StatusCode::from_u16(code) {
            Ok(status) => Self::from_status(status, message),
            Err(_) => Self::Server { code: code.to_string(), message },
        }
    }

    /// From an RPC error that the sandbox itself sent.
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
