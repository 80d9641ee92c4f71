//! `GET /metrics`: all metrics of the server in Prometheus's text format, for the operator.
//! `telemetry::METRICS` describes them. Ours, not E2B's.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};

use crate::auth::Scraper;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

/// Media type of the text format, and its version.
pub const METRICS_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders the metrics. May block for some milliseconds.
#[derive(Clone)]
pub struct MetricsSource(pub Arc<dyn Fn() -> String + Send + Sync>);

impl fmt::Debug for MetricsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsSource")
    }
}

pub(crate) fn routes() -> RouteTable {
    RouteTable::new().get("/metrics", metrics)
}

async fn metrics(
    State(api): State<Api>,
    _: Scraper,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    let source = api.config.metrics.clone();
    let source = source.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "this server has no metrics"))?;
    let text = tokio::task::spawn_blocking(move || (source.0)()).await.unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, METRICS_MEDIA_TYPE)], text))
}
