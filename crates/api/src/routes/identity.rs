//! Handlers for the OpenID Connect documents by which other services verify identity tokens of sandboxes. Public.

use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL};
use axum::response::{IntoResponse, Response};
use control::ControlError;
use identity::Issuer;
use serde_json::Value;

use crate::Api;
use crate::error::ApiError;
use crate::route_table::RouteTable;

/// How long the documents may be kept: less than a new key is published before it signs.
const CACHE: &str = "public, max-age=300";

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/.well-known/openid-configuration", async |State(api): State<Api>| {
            document(&api, Issuer::discovery)
        })
        .get("/.well-known/jwks.json", async |State(api): State<Api>| document(&api, Issuer::jwks))
}

fn document(api: &Api, of: fn(&Issuer) -> Value) -> Result<Response, ApiError> {
    let Some(issuer) = api.control.issuer() else {
        return Err(ControlError::NotFound("this server issues no identity tokens").into());
    };
    Ok(([(CACHE_CONTROL, CACHE), (ACCESS_CONTROL_ALLOW_ORIGIN, "*")], Json(of(issuer))).into_response())
}
