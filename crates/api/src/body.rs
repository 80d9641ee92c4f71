//! Extractors for request bodies: JSON of at most 16 MiB, with or without Content-Length, of any Content-Type.
//! Unknown fields are ignored. [`OptionalJson`] takes an absent body for an empty object.
//! A body that is too large is read on and discarded, because many clients read no response before they have sent everything.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::ApiError;

/// Maximum size of a request body, bytes.
pub const MAX_BODY: usize = 16 << 20;
/// For how long nothing of a body may arrive.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(60);
/// Why a body could not be read.
pub(crate) const BROKE_OFF: &str = "the request body broke off, or nothing of it arrived for a minute";
/// Maximum number of bytes that are discarded of a body that is too large; then the connection is closed.
const MAX_DISCARDED: usize = 256 << 20;

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body that may be absent.
pub(crate) struct OptionalJson<T>(pub(crate) T);

/// A JSON body together with its bytes.
pub(crate) struct RawJson<T>(pub(crate) T, pub(crate) Bytes);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        parse(&read(request).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        if bytes.trim_ascii().is_empty() { Ok(Self(T::default())) } else { parse(&bytes).map(Self) }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for RawJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        Ok(Self(parse(&bytes)?, bytes))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("Error when parsing request: {error}")))
}

async fn read(request: Request) -> Result<Bytes, ApiError> {
    let declared: Option<usize> = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok());
    let mut body = request.into_body();
    let mut bytes = Vec::with_capacity(declared.unwrap_or(0).min(64 << 10));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::bad_request(BROKE_OFF))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            discard(body).await;
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is larger than {MAX_BODY} bytes"),
            ));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

async fn discard(mut body: Body) {
    let mut discarded = 0;
    while discarded < MAX_DISCARDED
        && let Some(Ok(frame)) = body.frame().await
    {
        discarded += frame.data_ref().map_or(0, Bytes::len);
    }
}
