//! Handlers for the pool of pre-started sandboxes, for the operator: its state, and its size for a template. Ours, not E2B's.
//! A size that was set holds until it is unset, also after a restart.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::PoolReport;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Admin;
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new().get("/cofferdam/v1/pool", list).put("/cofferdam/v1/pool/{template}", set)
}

async fn list(State(api): State<Api>, _: Admin) -> Json<Vec<Value>> {
    let reports = api.control.pool().into_iter().map(|report| {
        let PoolReport { template, names, build, ready, wanted, fixed, hits, misses, memory } = report;
        json!({
            "templateID": template,
            "names": names,
            "buildID": build.to_string(),
            "ready": ready,
            "wanted": wanted,
            "fixed": fixed,
            "hits": hits,
            "misses": misses,
            "memoryBytes": memory,
        })
    });
    Json(reports.collect())
}

#[derive(Debug, Deserialize)]
struct PoolSize {
    /// Number of pre-started sandboxes; `None` lets it follow the demand.
    ready: Option<usize>,
}

async fn set(
    State(api): State<Api>,
    _: Admin,
    Segment(template): Segment,
    Body(size): Body<PoolSize>,
) -> Result<StatusCode, ApiError> {
    api.control.set_pool(&template, size.ready).await?;
    Ok(StatusCode::NO_CONTENT)
}
