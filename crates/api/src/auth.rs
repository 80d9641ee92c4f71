//! Who is calling: a team by its API key, or the operator by the admin token.
//! Header names follow the wire contract; secrets are compared in constant time.
//! Being an extractor, it answers before a body is read.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use control::same_secret;
use ids::TeamId;
use store::Team;

use crate::{Api, ApiError};

/// The team a request acts for: by `X-API-Key`, or by `X-Admin-Token` with `X-Team-ID`.
pub(crate) struct Caller(pub(crate) Arc<Team>);

/// The operator.
pub(crate) struct Admin;

/// The operator acting for a team: the one in `X-Team-ID`, or the default one.
pub(crate) struct AdminOf(pub(crate) Arc<Team>);

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        // An empty one is what a client without a key sends.
        let Some(key) = parts.headers.get("x-api-key").filter(|key| !key.is_empty()) else {
            if parts.headers.contains_key("x-admin-token") {
                return AdminOf::from_request_parts(parts, api).await.map(|AdminOf(team)| Self(team));
            }
            return Err(ApiError::unauthorized("authorization header is missing"));
        };
        let key = key.to_str().map_err(|_| ApiError::unauthorized("authorization header is malformed"))?;
        Ok(Self(api.control.authenticate(key).await?))
    }
}

impl FromRequestParts<Api> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Some(token) = parts.headers.get("x-admin-token") else {
            return Err(ApiError::unauthorized("authorization header is missing"));
        };
        let known = api.config.admin_token.as_deref();
        if known.is_some_and(|known| same_secret(token.as_bytes(), known.as_bytes())) {
            Ok(Self)
        } else {
            Err(ApiError::unauthorized("Invalid Access token.\nInvalid Access token."))
        }
    }
}

impl FromRequestParts<Api> for AdminOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        Admin::from_request_parts(parts, api).await?;
        let Some(team) = parts.headers.get("x-team-id") else { return Ok(Self(api.control.default_team())) };
        let team: Option<TeamId> = team.to_str().ok().and_then(|text| text.parse().ok());
        let team = team.ok_or_else(|| ApiError::bad_request("Invalid team ID"))?;
        let team = api.control.team(team);
        team.map(Self).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "Team not found"))
    }
}
