//! Responses of our own: a request that is not for the host of its connection, or one that cannot be forwarded.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::serve::ResponseBody;

/// Why a request is not forwarded. The texts are shown in the sandbox and name no secret's value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// It names another host than its connection.
    #[error("the request is for another host than the connection")]
    Misdirected,
    /// It is a CONNECT, or has a whole URL as its target.
    #[error("CONNECT and requests with a whole URL are not possible on this connection")]
    Proxying,
    /// It cannot be made complete, or the host does not answer.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed(reason.into())
    }

    /// Returns the response.
    pub(crate) fn response(&self) -> Response<ResponseBody> {
        let status = match self {
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Proxying => StatusCode::METHOD_NOT_ALLOWED,
            Self::Failed(_) => StatusCode::BAD_GATEWAY,
        };
        let body = serde_json::json!({ "error": format!("egress transform: {self}") });
        let body = Full::new(Bytes::from(body.to_string()));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
