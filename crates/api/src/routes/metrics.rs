//! Handlers for metrics of sandboxes and teams over time, as E2B's API has them. (Metrics of the server are in `prometheus`.)
//! Times in queries are seconds since 1970, both ends included; a longer range has longer steps.
//! A sandbox that is not known has no samples, which is no error.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::{Sample, TeamMetric, TeamSample};
use ids::{SandboxId, TeamId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::auth::Caller;
use crate::paths::{Params, SandboxPath, Segment};
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

/// Maximum number of sandboxes in one request.
const MAX_SANDBOXES: usize = 100;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/sandboxes/metrics", latest)
        .get("/sandboxes/{sandboxID}/metrics", history)
        .get("/teams/{teamID}/metrics", team)
        .get("/teams/{teamID}/metrics/max", team_max)
}

#[derive(Debug, Deserialize)]
struct TimeRange {
    start: Option<i64>,
    end: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct LatestParams {
    sandbox_ids: String,
}

#[derive(Debug, Deserialize)]
struct MaximumParams {
    start: Option<i64>,
    end: Option<i64>,
    metric: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SandboxMetric {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    cpu_count: u32,
    cpu_used_pct: f32,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

impl From<Sample> for SandboxMetric {
    fn from(sample: Sample) -> Self {
        Self {
            timestamp: moment(sample.at),
            timestamp_unix: sample.at,
            cpu_count: sample.cpu_count,
            cpu_used_pct: sample.cpu_used_pct,
            mem_used: sample.mem_used,
            mem_total: sample.mem_total,
            mem_cache: sample.mem_cache,
            disk_used: sample.disk_used,
            disk_total: sample.disk_total,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TeamMetricView {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    concurrent_sandboxes: u32,
    sandbox_start_rate: f64,
}

impl From<TeamSample> for TeamMetricView {
    fn from(sample: TeamSample) -> Self {
        Self {
            timestamp: moment(sample.at),
            timestamp_unix: sample.at,
            concurrent_sandboxes: sample.concurrent,
            sandbox_start_rate: sample.start_rate,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MaximumView {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    value: f64,
}

fn moment(at: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

async fn history(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Params(range): Params<TimeRange>,
) -> Result<Json<Vec<SandboxMetric>>, ApiError> {
    let samples = api.control.metrics_history(team.id, &id, range.start, range.end).await?;
    Ok(Json(samples.into_iter().map(Into::into).collect()))
}

async fn latest(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<LatestParams>,
) -> Result<Json<Value>, ApiError> {
    let ids: Result<Vec<SandboxId>, _> =
        params.sandbox_ids.split(',').filter(|id| !id.is_empty()).map(str::parse).collect();
    let ids = ids.map_err(|_| ApiError::bad_request("Invalid sandbox ID"))?;
    if ids.len() > MAX_SANDBOXES {
        return Err(ApiError::bad_request(format!("at most {MAX_SANDBOXES} sandboxes can be asked for")));
    }
    let latest = api.control.latest_metrics(team.id, &ids).await;
    let sandboxes: BTreeMap<SandboxId, SandboxMetric> =
        latest.into_iter().map(|(id, sample)| (id, sample.into())).collect();
    Ok(Json(json!({ "sandboxes": sandboxes })))
}

async fn team(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(named): Segment,
    Params(range): Params<TimeRange>,
) -> Result<Json<Vec<TeamMetricView>>, ApiError> {
    check_own_team(team.id, &named)?;
    let samples = api.control.team_metrics(team.id, range.start, range.end).await?;
    Ok(Json(samples.into_iter().map(Into::into).collect()))
}

async fn team_max(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(named): Segment,
    Params(params): Params<MaximumParams>,
) -> Result<Json<MaximumView>, ApiError> {
    check_own_team(team.id, &named)?;
    let metric = match params.metric.as_str() {
        "concurrent_sandboxes" => TeamMetric::ConcurrentSandboxes,
        "sandbox_start_rate" => TeamMetric::SandboxStartRate,
        _ => return Err(ApiError::bad_request("metric is concurrent_sandboxes or sandbox_start_rate")),
    };
    let (at, value) = api.control.team_maximum(team.id, metric, params.start, params.end).await?;
    Ok(Json(MaximumView { timestamp: moment(at), timestamp_unix: at, value }))
}

/// Refuses a team other than the caller's.
fn check_own_team(team: TeamId, named: &str) -> Result<(), ApiError> {
    let named: TeamId = named.parse().map_err(|_| ApiError::bad_request("Invalid team ID"))?;
    if named == team {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "You are not allowed to access this team's metrics"))
}
