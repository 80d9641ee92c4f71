//! A span and a metric for every request to the REST API.
//! The span has the request's method and route; `auth` adds the team, `paths` the sandbox, and the response its status.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, info_span};

/// Name of the route in spans and metrics for paths that match no route.
const NO_ROUTE: &str = "none";

/// Runs a request in its span and records how long it took.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let span =
        info_span!("http_request", %method, route, team_id = Empty, sandbox_id = Empty, status = Empty);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("status", status);
    telemetry::http_request_finished(method.as_str(), route, status, began.elapsed());
    response
}

/// Adds a field to the span of the request that is being handled.
pub(crate) fn record(field: &'static str, value: impl std::fmt::Display) {
    Span::current().record(field, display(value));
}
