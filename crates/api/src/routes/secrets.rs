//! Handlers for secrets of teams. A value is taken and never given back.
//! Texts of errors are fixed and have nothing of the request, and no response may be stored: E2B's contract.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrets::{SecretInfo, Secrets, SecretsError};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::{Params, Segment};
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

const PATH: &str = "/secrets";

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get(PATH, list)
        .post(PATH, create)
        .get("/secrets/{secret}", get)
        .post("/secrets/{secret}", update)
        .delete("/secrets/{secret}", remove)
}

#[derive(Deserialize)]
struct NewSecret {
    name: String,
    value: Value,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct NewValue {
    value: Value,
    metadata: Option<BTreeMap<String, String>>,
}

/// A secret's value. Not shown by `Debug`, and overwritten when it is no longer needed.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Value(Zeroizing<String>);

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self(Zeroizing::new(value))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListParams {
    limit: Option<u32>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SecretView {
    #[serde(rename = "secretID")]
    id: String,
    name: String,
    current_version: u64,
    metadata: BTreeMap<String, String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl From<SecretInfo> for SecretView {
    fn from(info: SecretInfo) -> Self {
        let SecretInfo { id, name, version, metadata, created_at, updated_at } = info;
        Self { id: id.to_string(), name, current_version: version, metadata, created_at, updated_at }
    }
}

impl From<SecretsError> for ApiError {
    fn from(error: SecretsError) -> Self {
        let status = match &error {
            SecretsError::Invalid => StatusCode::BAD_REQUEST,
            SecretsError::NotFound => StatusCode::NOT_FOUND,
            SecretsError::Conflict => StatusCode::CONFLICT,
            SecretsError::NotForHost | SecretsError::Store(_) | SecretsError::Key(_) => {
                tracing::error!(%error, "a request about secrets failed");
                StatusCode::BAD_GATEWAY
            }
        };
        Self::new(status, "Secret not found")
    }
}

fn secrets(api: &Api) -> Result<&Secrets, ApiError> {
    api.control.secrets().ok_or_else(|| ApiError::new(StatusCode::FORBIDDEN, ""))
}

async fn create(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<NewSecret>,
) -> Result<(StatusCode, Json<SecretView>), ApiError> {
    let metadata = body.metadata.unwrap_or_default();
    let made = secrets(&api)?.create(team.id, &body.name, &body.value.0, metadata).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

async fn list(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<ListParams>,
) -> Result<impl IntoResponse, ApiError> {
    let after = params.next_token.as_deref().filter(|token| !token.is_empty());
    let (page, next) = secrets(&api)?.list(team.id, params.limit, after).await?;
    let mut headers = HeaderMap::new();
    if let Some(next) = next.and_then(|token| HeaderValue::from_str(&token).ok()) {
        headers.insert(HeaderName::from_static("x-next-token"), next);
    }
    Ok((headers, Json(page.into_iter().map(SecretView::from).collect::<Vec<_>>())))
}

async fn get(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(secret): Segment,
) -> Result<Json<SecretView>, ApiError> {
    Ok(Json(secrets(&api)?.get(team.id, &secret).await?.into()))
}

async fn update(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(secret): Segment,
    Body(body): Body<NewValue>,
) -> Result<Json<SecretView>, ApiError> {
    Ok(Json(secrets(&api)?.update(team.id, &secret, &body.value.0, body.metadata).await?.into()))
}

async fn remove(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(secret): Segment,
) -> Result<StatusCode, ApiError> {
    secrets(&api)?.delete(team.id, &secret).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives responses below `/secrets` their fixed texts: other parts of the server may quote the request. Nothing of them may be stored.
pub(crate) async fn fixed_texts(request: Request, next: Next) -> Response {
    let below = request.uri().path().strip_prefix(PATH).map(str::to_owned);
    let response = next.run(request).await;
    let Some(below) = below.filter(|below| below.is_empty() || below.starts_with('/')) else {
        return response;
    };
    let has_route = !below.trim_start_matches('/').contains('/') && below != "/";
    let text = match response.status() {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
            (StatusCode::BAD_REQUEST, "Invalid secrets request")
        }
        StatusCode::UNAUTHORIZED => (StatusCode::UNAUTHORIZED, "You are not authenticated"),
        StatusCode::FORBIDDEN => (StatusCode::FORBIDDEN, "Secrets are not available for this team"),
        StatusCode::NOT_FOUND if has_route => (StatusCode::NOT_FOUND, "Secret not found"),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => (StatusCode::NOT_FOUND, "Not found"),
        StatusCode::CONFLICT => (StatusCode::CONFLICT, "Secret cannot be modified in its current state"),
        StatusCode::BAD_GATEWAY | StatusCode::INTERNAL_SERVER_ERROR => {
            (StatusCode::BAD_GATEWAY, "Secrets backend error")
        }
        _ => return unstored(response),
    };
    unstored(ApiError::new(text.0, text.1).into_response())
}

fn unstored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
