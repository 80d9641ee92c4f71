//! A running sandbox's time and state: connect, timeout, refresh; pause, resume, snapshot and fork.
//! The last four need an engine that captures memory and disk; until there is one they are refused, not faked.
//! Unknown sandboxes are 404s everywhere, so that clients see what is wrong first.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::auth::Caller;
use crate::body::{Json as Body, OptionalJson};
use crate::paths::SandboxPath;
use crate::wire::Sandbox;
use crate::{Api, ApiError};

/// Life after a connect that names none, seconds (second generation).
const CONNECT_TIMEOUT: i64 = 300;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/sandboxes/{sandboxID}/connect", post(connect_v1))
        .route("/v2/sandboxes/{sandboxID}/connect", post(connect_v2))
        .route("/sandboxes/{sandboxID}/timeout", post(timeout))
        .route("/sandboxes/{sandboxID}/refreshes", post(refresh))
        .route("/sandboxes/{sandboxID}/resume", post(resume))
        .route("/sandboxes/{sandboxID}/pause", post(pause))
        .route("/sandboxes/{sandboxID}/snapshots", post(snapshot))
        .route("/sandboxes/{sandboxID}/fork", post(fork))
        .route("/snapshots", get(snapshots))
}

#[derive(Debug, Deserialize)]
struct ConnectV1 {
    timeout: i64,
}

#[derive(Debug, Default, Deserialize)]
struct ConnectV2 {
    timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Timeout {
    timeout: i64,
}

#[derive(Debug, Default, Deserialize)]
struct Refresh {
    duration: Option<i64>,
}

async fn connect_v1(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Body(body): Body<ConnectV1>,
) -> Result<Json<Sandbox>, ApiError> {
    let access = api.control.connect(&team, &id, body.timeout).await?;
    Ok(Json(Sandbox::new(access, &api.config)))
}

async fn connect_v2(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<ConnectV2>,
) -> Result<Json<Sandbox>, ApiError> {
    let access = api.control.connect(&team, &id, body.timeout.unwrap_or(CONNECT_TIMEOUT)).await?;
    Ok(Json(Sandbox::new(access, &api.config)))
}

async fn timeout(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Body(body): Body<Timeout>,
) -> Result<StatusCode, ApiError> {
    api.control.set_timeout(&team, &id, body.timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn refresh(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<Refresh>,
) -> Result<StatusCode, ApiError> {
    api.control.refresh(&team, &id, body.duration).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    api.control.live(team.id, &id)?;
    Err(ApiError::new(StatusCode::CONFLICT, format!("Sandbox {id} is already running")))
}

async fn pause(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    api.control.live(team.id, &id)?;
    Err(unsupported(&api, "pause sandboxes"))
}

async fn snapshot(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    api.control.live(team.id, &id)?;
    Err(unsupported(&api, "take snapshots"))
}

async fn fork(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    api.control.live(team.id, &id)?;
    Err(unsupported(&api, "fork sandboxes"))
}

/// There are none: nothing here makes any.
async fn snapshots(_: Caller) -> Json<[(); 0]> {
    Json([])
}

fn unsupported(api: &Api, what: &str) -> ApiError {
    let engine = api.control.engine().name;
    ApiError::not_implemented(format!(
        "this server cannot {what} yet: its engine '{engine}' does not capture a sandbox's state"
    ))
}
