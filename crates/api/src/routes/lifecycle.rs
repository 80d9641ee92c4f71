//! Handlers that change the time limit or state of a sandbox: connect, timeout, refresh, pause, resume, snapshot, fork, rollback.
//! A body may be absent where all its fields have defaults.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use control::{ForkRequest, PauseRequest, SnapshotQuery};
use ids::SandboxId;
use serde::Deserialize;
use store::Team;

use crate::auth::Caller;
use crate::body::{Json as Body, OptionalJson};
use crate::paths::{Params, SandboxPath};
use crate::route_table::RouteTable;
use crate::wire::{Forked, Sandbox, Snapshot};
use crate::{Api, ApiError};

/// Time limit after a v2 connect that names none, seconds.
const DEFAULT_CONNECT_TIMEOUT: i64 = 300;
/// Time limit after a resume that names none, seconds.
const DEFAULT_RESUME_TIMEOUT: i64 = 15;
/// Time limit of forks whose request names none, seconds.
const DEFAULT_FORK_TIMEOUT: i64 = 15;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/sandboxes/{sandboxID}/connect", connect_v1)
        .post("/v2/sandboxes/{sandboxID}/connect", connect_v2)
        .post("/sandboxes/{sandboxID}/timeout", timeout)
        .post("/sandboxes/{sandboxID}/refreshes", refresh)
        .post("/sandboxes/{sandboxID}/resume", resume)
        .post("/sandboxes/{sandboxID}/pause", pause)
        .post("/sandboxes/{sandboxID}/snapshots", snapshot)
        .post("/sandboxes/{sandboxID}/fork", fork)
        .post("/sandboxes/{sandboxID}/rollback", rollback)
        .get("/snapshots", snapshots)
}

#[derive(Debug, Deserialize)]
struct ConnectV1 {
    timeout: i64,
    memory: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct ConnectV2 {
    timeout: Option<i64>,
    memory: Option<bool>,
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
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    connect(&api, &team, &id, body.timeout, body.memory).await
}

async fn connect_v2(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<ConnectV2>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    connect(&api, &team, &id, body.timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT), body.memory).await
}

/// The status is 200 if the sandbox was running and 201 if it was resumed.
async fn connect(
    api: &Api,
    team: &Arc<Team>,
    id: &SandboxId,
    timeout: i64,
    memory: Option<bool>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let (access, resumed) = api.control.connect(team, id, timeout, memory.unwrap_or(true)).await?;
    let status = if resumed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Sandbox::new(access, &api.config))))
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

#[derive(Debug, Default, Deserialize)]
struct Resume {
    timeout: Option<i64>,
    memory: Option<bool>,
}

async fn resume(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<Resume>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let timeout = body.timeout.unwrap_or(DEFAULT_RESUME_TIMEOUT);
    let access = api.control.resume(&team, &id, timeout, body.memory.unwrap_or(true)).await?;
    Ok((StatusCode::CREATED, Json(Sandbox::new(access, &api.config))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pause {
    memory: Option<bool>,
    require_healthy_guest: Option<bool>,
}

async fn pause(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<Pause>,
) -> Result<StatusCode, ApiError> {
    let request = PauseRequest {
        memory: body.memory.unwrap_or(true),
        require_healthy: body.require_healthy_guest.unwrap_or(false),
        accept_silent: false,
    };
    api.control.pause(team.id, &id, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
struct NewSnapshot {
    name: Option<String>,
    memory: Option<bool>,
}

async fn snapshot(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<NewSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), ApiError> {
    let memory = body.memory.unwrap_or(true);
    let entry = api.control.snapshot(&team, &id, body.name.as_deref(), memory).await?;
    Ok((StatusCode::CREATED, Json(entry.into())))
}

#[derive(Debug, Default, Deserialize)]
struct Fork {
    timeout: Option<i64>,
    count: Option<i64>,
}

async fn fork(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    OptionalJson(body): OptionalJson<Fork>,
) -> Result<(StatusCode, Json<Vec<Forked>>), ApiError> {
    let request =
        ForkRequest { timeout: body.timeout.unwrap_or(DEFAULT_FORK_TIMEOUT), count: body.count.unwrap_or(1) };
    let results = api.control.fork(&team, &id, request).await?;
    let forked = results.into_iter().map(|result| Forked::new(result, &api.config)).collect();
    Ok((StatusCode::CREATED, Json(forked)))
}

#[derive(Debug, Deserialize)]
struct Rollback {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
}

/// Ours, not E2B's.
async fn rollback(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Body(body): Body<Rollback>,
) -> Result<Json<Sandbox>, ApiError> {
    let access = api.control.rollback(&team, &id, &body.snapshot_id).await?;
    Ok(Json(Sandbox::new(access, &api.config)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotParams {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<String>,
    next_token: Option<String>,
}

async fn snapshots(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<SnapshotParams>,
) -> Result<impl IntoResponse, ApiError> {
    let sandbox = params.sandbox_id.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose();
    let limit = params.limit.map(|limit| limit.parse()).transpose();
    let query = SnapshotQuery {
        sandbox: sandbox.map_err(|_| ApiError::bad_request("Invalid sandbox ID"))?,
        name: params.name,
        limit: limit.map_err(|_| ApiError::bad_request("Invalid limit: not a number"))?,
        next_token: params.next_token,
    };
    let page = api.control.snapshots(&team, &query)?;
    let mut headers = HeaderMap::new();
    if let Some(token) = page.next_token.and_then(|token| HeaderValue::from_str(&token).ok()) {
        headers.insert(HeaderName::from_static("x-next-token"), token);
    }
    let items: Vec<Snapshot> = page.items.into_iter().map(Into::into).collect();
    Ok((headers, Json(items)))
}
