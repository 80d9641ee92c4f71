//! The REST interface of envd: file contents, settings, health and metrics.
//! Error responses are JSON objects with `code` and `message`.

pub mod accept_encoding;
pub mod body_reader;
pub mod compose;
pub mod conditions;
pub mod file_body;
pub mod file_writer;
pub mod files_get;
pub mod files_post;
pub mod init;
pub mod java_store;
pub mod metrics;
pub mod multipart;
pub mod system;

use std::io;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde::Serialize;

use crate::auth::AuthError;
use crate::filesystem::dirs::DirsError;
use crate::filesystem::ops::denied;
use crate::identity::Identity;
use crate::paths::PathError;
use crate::state::NoUser;

/// The body of a response. An error in it breaks the connection, so that the client notices that the body is incomplete.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An error response.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RestError {
    /// HTTP status, repeated in the body.
    pub status: StatusCode,
    /// Description of the error.
    pub message: String,
}

impl RestError {
    /// Makes an error with a status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// Makes an error for an invalid request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Makes an error for an unexpected failure.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Makes an error for a user who lacks a right.
    pub fn denied(attempt: &str, identity: &Identity) -> Self {
        Self::new(StatusCode::FORBIDDEN, denied(attempt, identity))
    }

    /// Makes the response of the error.
    pub fn response(&self) -> Response<Body> {
        #[derive(Serialize)]
        struct Shape<'a> {
            code: u16,
            message: &'a str,
        }
        let mut response = json(&Shape { code: self.status.as_u16(), message: &self.message });
        *response.status_mut() = self.status;
        response
    }
}

impl From<DirsError> for RestError {
    fn from(error: DirsError) -> Self {
        let status = if error.is_full() {
            StatusCode::INSUFFICIENT_STORAGE
        } else if error.is_denied() {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::new(status, format!("error ensuring directories: {error}"))
    }
}

impl From<AuthError> for RestError {
    fn from(error: AuthError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

impl From<NoUser> for RestError {
    fn from(error: NoUser) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.to_string())
    }
}

impl From<PathError> for RestError {
    fn from(error: PathError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<tokio::task::JoinError> for RestError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(error.to_string())
    }
}

/// Runs `action` with the rights of a user.
pub fn acting<T>(identity: &Identity, action: impl FnOnce() -> Result<T, RestError>) -> Result<T, RestError> {
    let failed = |error| RestError::internal(format!("cannot act as '{}': {error}", identity.name));
    identity.run(action).map_err(failed)?
}

/// Makes a body of bytes in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Makes a JSON response with status 200.
pub fn json(value: &impl Serialize) -> Response<Body> {
    let text =
        serde_json::to_vec(value).expect("own types have string keys and serializers that do not fail");
    let mut response = Response::new(full(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Makes a response without a body, with status 204.
pub fn no_content() -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
