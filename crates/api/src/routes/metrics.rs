//! What sandboxes and teams use, over time. Times in queries are seconds since 1970, both ends included.
//! A longer range is answered in longer steps; unknown sandboxes have no samples, which is not an error.
//! Totals in shapes are the contract's: sizes in bytes, a processor share of 0 to 100.

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

/// Most sandboxes whose metrics are asked for at once.
const MOST: usize = 100;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/sandboxes/metrics", latest)
        .get("/sandboxes/{sandboxID}/metrics", history)
        .get("/teams/{teamID}/metrics", team)
        .get("/teams/{teamID}/metrics/max", team_max)
}

#[derive(Debug, Deserialize)]
struct Between {
    start: Option<i64>,
    end: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Ids {
    sandbox_ids: String,
}

#[derive(Debug, Deserialize)]
struct Maximum {
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
    Params(range): Params<Between>,
) -> Result<Json<Vec<SandboxMetric>>, ApiError> {
    let samples = api.control.metrics_history(team.id, &id, range.start, range.end).await?;
    Ok(Json(samples.into_iter().map(Into::into).collect()))
}

async fn latest(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<Ids>,
) -> Result<Json<Value>, ApiError> {
    let ids: Result<Vec<SandboxId>, _> =
        params.sandbox_ids.split(',').filter(|id| !id.is_empty()).map(str::parse).collect();
    let ids = ids.map_err(|_| ApiError::bad_request("Invalid sandbox ID"))?;
    if ids.len() > MOST {
        return Err(ApiError::bad_request(format!("at most {MOST} sandboxes can be asked for")));
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
    Params(range): Params<Between>,
) -> Result<Json<Vec<TeamMetricView>>, ApiError> {
    own(team.id, &named)?;
    let samples = api.control.team_metrics(team.id, range.start, range.end).await?;
    Ok(Json(samples.into_iter().map(Into::into).collect()))
}

async fn team_max(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(named): Segment,
    Params(params): Params<Maximum>,
) -> Result<Json<MaximumView>, ApiError> {
    own(team.id, &named)?;
    let metric = match params.metric.as_str() {
        "concurrent_sandboxes" => TeamMetric::ConcurrentSandboxes,
        "sandbox_start_rate" => TeamMetric::SandboxStartRate,
        _ => return Err(ApiError::bad_request("metric is concurrent_sandboxes or sandbox_start_rate")),
    };
    let (at, value) = api.control.team_maximum(team.id, metric, params.start, params.end).await?;
    Ok(Json(MaximumView { timestamp: moment(at), timestamp_unix: at, value }))
}

/// A caller sees its own team's figures only.
fn own(team: TeamId, named: &str) -> Result<(), ApiError> {
    let named: TeamId = named.parse().map_err(|_| ApiError::bad_request("Invalid team ID"))?;
    if named == team {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "You are not allowed to access this team's metrics"))
}
