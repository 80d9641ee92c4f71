//! The plain HTTP half of envd: file contents, settings, health and metrics.
//! Every failure is a JSON object with `code` and `message`.

pub mod accept;
pub mod body;
pub mod compose;
pub mod conditions;
pub mod files_get;
pub mod files_post;
pub mod init;
pub mod metrics;
pub mod multipart;
pub mod query;
pub mod reader;
pub mod sink;
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
use crate::paths::PathError;
use crate::state::NoUser;

/// A response's body. An error in it breaks the connection, so that nobody takes a part for the whole.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A failure as the client sees it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RestError {
    /// HTTP status, repeated in the body.
    pub status: StatusCode,
    /// What went wrong.
    pub message: String,
}

impl RestError {
    /// A failure with that status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something failed that should not.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The response that tells of it.
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
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::new(status, format!("error ensuring directories: {error}"))
    }
}

impl From<AuthError> for RestError {
    fn from(error: AuthError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.to_string())
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

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON response, 200.
pub fn json(value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("our own types have string keys and no failing serializers");
    let mut response = Response::new(full(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A response without a body, 204.
pub fn no_content() -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
