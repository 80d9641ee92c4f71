//! Extractors for ids in paths and parameters in queries.
//! A sandbox id may have the suffix `-<client id>` of older clients, which is dropped.
//! A malformed id is a 400, not a 404.

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::StatusCode;
use axum::http::request::Parts;
use ids::SandboxId;
use serde::de::DeserializeOwned;

use crate::{ApiError, observe};

/// `{sandboxID}` of a path.
pub(crate) struct SandboxPath(pub(crate) SandboxId);

/// The first parameter of a path, percent-decoded.
pub(crate) struct Segment(pub(crate) String);

/// The query's parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Segment(text) = Segment::from_request_parts(parts, state).await?;
        let invalid = || ApiError::bad_request("Invalid sandbox ID");
        let id = match text.split_once('-') {
            None => text.as_str(),
            Some((id, client)) if !client.contains('-') => id,
            Some(_) => return Err(invalid()),
        };
        let id: SandboxId = id.parse().map_err(|_| invalid())?;
        observe::record("sandbox_id", &id);
        Ok(Self(id))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::bad_request("the path is not valid UTF-8"))?;
        let first = params.iter().next();
        let (_, value) = first.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "no such path"))?;
        Ok(Self(value.to_owned()))
    }
}
