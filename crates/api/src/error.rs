//! Error responses as the SDKs expect them: `{"code", "message"}` and sometimes `"error_code"`.
//! `code` equals the HTTP status; clients use either.
//! The header `Should-Retry` says whether SDKs shall repeat the request.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use builds::BuildError;
use catalog::CatalogError;
use control::{AuthError, ControlError};
use events::EventError;
use serde::Serialize;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    /// Value of `Should-Retry`, for statuses on which SDKs retry by themselves.
    retry: Option<bool>,
}

/// The body of an error response.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    code: u16,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
}

impl ApiError {
    /// Returns an error response with this status and message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None, retry: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the text for the caller.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Returns the body alone, to be embedded in another response.
    pub(crate) fn into_body(self) -> ErrorBody {
        ErrorBody { code: self.status.as_u16(), message: self.message, error_code: self.error_code }
    }

    fn code(mut self, error_code: &'static str) -> Self {
        self.error_code = Some(error_code);
        self
    }

    pub(crate) fn retry(mut self, helps: bool) -> Self {
        self.retry = Some(helps);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry) = (self.status, self.retry);
        let mut response = (status, Json(self.into_body())).into_response();
        if let Some(helps) = retry {
            let headers = response.headers_mut();
            headers.insert("should-retry", HeaderValue::from_static(if helps { "true" } else { "false" }));
            if helps {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
        }
        response
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        use ControlError as E;
        let message = error.to_string();
        let with = |status| Self::new(status, message.clone());
        match error {
            E::Invalid(_) => with(StatusCode::BAD_REQUEST),
            E::SandboxNotFound(_)
            | E::TemplateNotFound(_)
            | E::TagNotFound { .. }
            | E::SnapshotGone
            | E::TeamNotFound
            | E::NotFound(_)
            | E::KeyNotFound => with(StatusCode::NOT_FOUND),
            E::Forbidden(_) => with(StatusCode::FORBIDDEN),
            E::Conflict(_) => with(StatusCode::CONFLICT),
            E::IdempotencyMismatch => {
                with(StatusCode::UNPROCESSABLE_ENTITY).code("idempotency_request_mismatch")
            }
            E::IdempotencyInProgress => with(StatusCode::CONFLICT).code("idempotency_in_progress"),
            E::TeamLimit(_) | E::BuildLimit(_) => with(StatusCode::TOO_MANY_REQUESTS).retry(false),
            E::Capacity(_) => {
                with(StatusCode::SERVICE_UNAVAILABLE).code("sandbox_capacity_unavailable").retry(true)
            }
            E::StartTimeout(_) => {
                with(StatusCode::GATEWAY_TIMEOUT).code("sandbox_placement_timeout").retry(true)
            }
            E::StartFailed(_) => with(StatusCode::INTERNAL_SERVER_ERROR).code("sandbox_create_failed"),
            E::StartRefused(_) => with(StatusCode::INTERNAL_SERVER_ERROR).code("sandbox_create_refused"),
            E::Unsupported(_) => with(StatusCode::NOT_IMPLEMENTED),
            E::EnvdSilent(_) => with(StatusCode::SERVICE_UNAVAILABLE).retry(false),
            E::CaptureFailed(_) => with(StatusCode::INTERNAL_SERVER_ERROR),
            // Not 409: the SDKs take a 409 of a pause for "paused already" and report success.
            E::Uncapturable(_) => with(StatusCode::UNPROCESSABLE_ENTITY).code("sandbox_not_capturable"),
            E::ShuttingDown => with(StatusCode::SERVICE_UNAVAILABLE).retry(true),
            E::Engine(_) => with(StatusCode::INTERNAL_SERVER_ERROR).code("internal_server_error"),
            E::Store(ref cause) => {
                tracing::error!(error = %cause, "database error");
                with(StatusCode::INTERNAL_SERVER_ERROR).code("internal_server_error")
            }
        }
    }
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        ControlError::from(error).into()
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        ControlError::from(error).into()
    }
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> Self {
        ControlError::from(error).into()
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Malformed => Self::unauthorized(error.to_string()),
            // The first line is E2B's, which users search for.
            AuthError::Format | AuthError::Unknown => Self::unauthorized(format!(
                "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n{error}"
            )),
            AuthError::TokenFormat | AuthError::TokenUnknown => Self::unauthorized(format!(
                "Invalid Access token, try to login again by running `e2b auth login`.\n{error}"
            )),
            AuthError::Provider => Self::unauthorized(format!("Invalid auth provider token.\n{error}")),
            AuthError::Store(cause) => {
                tracing::error!(error = %cause, "database error");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server's database failed")
                    .code("internal_server_error")
            }
        }
    }
}
