//! Handlers for facts about the server: `/health`, for load balancers, and the engines, which is ours and not E2B's.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::Api;
use crate::auth::Caller;
use crate::route_table::RouteTable;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new().get("/health", async || "Health check successful").get("/cofferdam/v1/engine", engine)
}

async fn engine(State(api): State<Api>, _: Caller) -> Json<Value> {
    let engine = api.control.engine();
    Json(json!({
        "name": engine.name,
        "isolation": engine.isolation,
        "summary": engine.summary,
        "capabilities": engine.capabilities,
        "running": api.control.running_count(),
        "engines": api.control.engines(),
    }))
}
