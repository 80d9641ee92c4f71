//! Handlers for the logs of sandboxes: v1 in order from a start time, v2 by cursor and direction; and for their connections to hosts
//! (Cofferdam only), as v2.
//! A sandbox that is not known has no lines, which is no error: the lines of an ended sandbox are kept longer than its record.
//! Times in queries are milliseconds since 1970.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use egress_log::EgressEntry;
use logs::{LogLevel, LogLine, LogQuery};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::auth::Caller;
use crate::paths::{Params, SandboxPath};
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

const DEFAULT_LIMIT: i64 = 1000;
const MAX_LIMIT: i64 = 1000;
const MAX_SEARCH: usize = 256;
/// Length of the period that is searched, from the cursor or back from now.
const WINDOW: time::Duration = time::Duration::days(7);

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/sandboxes/{sandboxID}/logs", logs_v1)
        .get("/v2/sandboxes/{sandboxID}/logs", logs_v2)
        .get("/sandboxes/{sandboxID}/egress", egress)
}

#[derive(Debug, Deserialize)]
struct ParamsV1 {
    start: Option<i64>,
    limit: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct ParamsV2 {
    cursor: Option<i64>,
    limit: Option<i64>,
    direction: Option<Direction>,
    level: Option<LogLevel>,
    search: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Forward,
    #[default]
    Backward,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogsV1 {
    logs: Vec<RawLine>,
    log_entries: Vec<LogEntryView>,
}

#[derive(Debug, Serialize)]
struct LogsV2 {
    logs: Vec<LogEntryView>,
}

#[derive(Debug, Serialize)]
struct RawLine {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    /// JSON as text: the CLI reads `level`, `logger` and `message` from it.
    line: String,
}

#[derive(Debug, Serialize)]
struct LogEntryView {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    level: LogLevel,
    message: String,
    fields: BTreeMap<String, String>,
}

async fn logs_v1(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Params(params): Params<ParamsV1>,
) -> Result<Json<LogsV1>, ApiError> {
    let now = OffsetDateTime::now_utc();
    let from = params.start.map_or(Ok(now - WINDOW), moment)?;
    let limit = limit(params.limit, i64::MAX)?;
    let lines = api.control.logs(team.id, &id, query(from, now, limit)).await;
    let logs = lines.iter().map(|line| RawLine { timestamp: line.time(), line: raw(line) }).collect();
    Ok(Json(LogsV1 { logs, log_entries: lines.into_iter().map(LogEntryView::from).collect() }))
}

async fn logs_v2(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Params(params): Params<ParamsV2>,
) -> Result<Json<LogsV2>, ApiError> {
    if params.search.as_ref().is_some_and(|text| text.chars().count() > MAX_SEARCH) {
        return Err(ApiError::bad_request(format!("search is at most {MAX_SEARCH} characters")));
    }
    let (from, to, newest_first) = period(params.cursor, params.direction)?;
    let limit = limit(params.limit, MAX_LIMIT)?;
    let query = LogQuery {
        newest_first,
        level: params.level.unwrap_or(LogLevel::Debug),
        search: params.search.filter(|text| !text.is_empty()),
        ..query(from, to, limit)
    };
    let lines = api.control.logs(team.id, &id, query).await;
    Ok(Json(LogsV2 { logs: lines.into_iter().map(LogEntryView::from).collect() }))
}

#[derive(Debug, Deserialize)]
struct EgressParams {
    cursor: Option<i64>,
    limit: Option<i64>,
    direction: Option<Direction>,
}

#[derive(Debug, Serialize)]
struct EgressView {
    connections: Vec<ConnectionsView>,
}

/// Connections to one host with one outcome, within some seconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionsView {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    host: Option<String>,
    address: Option<IpAddr>,
    port: u16,
    verdict: String,
    reason: Option<String>,
    count: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

impl From<EgressEntry> for ConnectionsView {
    fn from(entry: EgressEntry) -> Self {
        let at = OffsetDateTime::from_unix_timestamp_nanos(entry.at.into());
        Self {
            timestamp: at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            host: entry.host,
            address: entry.address,
            port: entry.port,
            verdict: entry.verdict,
            reason: entry.reason,
            count: entry.connections,
            sent_bytes: entry.sent,
            received_bytes: entry.received,
        }
    }
}

async fn egress(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Params(params): Params<EgressParams>,
) -> Result<Json<EgressView>, ApiError> {
    let (from, to, newest_first) = period(params.cursor, params.direction)?;
    let limit = limit(params.limit, MAX_LIMIT)?;
    let query = LogQuery { newest_first, ..query(from, to, limit) };
    let entries = api.control.egress(team.id, &id, query).await;
    Ok(Json(EgressView { connections: entries.into_iter().map(ConnectionsView::from).collect() }))
}

/// Returns the period that a cursor and a direction mean, and whether its newest come first.
fn period(
    cursor: Option<i64>,
    direction: Option<Direction>,
) -> Result<(OffsetDateTime, OffsetDateTime, bool), ApiError> {
    let now = OffsetDateTime::now_utc();
    let newest_first = direction.unwrap_or_default() == Direction::Backward;
    let (from, to) = match (cursor.map(moment).transpose()?, newest_first) {
        (None, _) => (now - WINDOW, now),
        (Some(cursor), false) => (cursor, cursor.saturating_add(WINDOW)),
        (Some(cursor), true) => (cursor.saturating_sub(WINDOW), cursor),
    };
    Ok((from, to, newest_first))
}

fn query(from: OffsetDateTime, to: OffsetDateTime, limit: usize) -> LogQuery {
    let nanos = |at: OffsetDateTime| i64::try_from(at.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    LogQuery {
        from: nanos(from),
        to: nanos(to),
        newest_first: false,
        level: LogLevel::Debug,
        search: None,
        limit,
    }
}

fn moment(millis: i64) -> Result<OffsetDateTime, ApiError> {
    let nanos = i128::from(millis) * 1_000_000;
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().filter(|_| millis >= 0);
    moment.ok_or_else(|| ApiError::bad_request("times are milliseconds since 1970"))
}

fn limit(requested: Option<i64>, max: i64) -> Result<usize, ApiError> {
    let limit = requested.unwrap_or(DEFAULT_LIMIT);
    let in_range = (0..=max).contains(&limit);
    usize::try_from(limit)
        .ok()
        .filter(|_| in_range)
        .ok_or_else(|| ApiError::bad_request("limit is out of range"))
}

fn raw(line: &LogLine) -> String {
    let mut all = serde_json::Map::new();
    all.extend(line.fields.iter().map(|(name, value)| (name.clone(), value.clone().into())));
    all.insert("level".into(), serde_json::to_value(line.level).unwrap_or_default());
    all.insert("logger".into(), line.logger.clone().into());
    all.insert("message".into(), line.message.clone().into());
    serde_json::Value::from(all).to_string()
}

impl From<LogLine> for LogEntryView {
    fn from(line: LogLine) -> Self {
        let timestamp = line.time();
        let mut fields = line.fields;
        fields.insert("logger".to_owned(), line.logger);
        Self { timestamp, level: line.level, message: line.message, fields }
    }
}
