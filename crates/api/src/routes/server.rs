//! What the server says about itself.
//! `/health` is for load balancers, the rest is ours and not E2B's.
//! Nothing here changes anything.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::Api;
use crate::auth::Caller;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/health", get(async || "Health check successful"))
        .route("/cofferdam/v1/engine", get(engine))
}

async fn engine(State(api): State<Api>, _: Caller) -> Json<Value> {
    let engine = api.control.engine();
    Json(json!({
        "name": engine.name,
        "isolation": engine.isolation,
        "summary": engine.summary,
        "capabilities": engine.capabilities,
        "running": api.control.running(),
        "engines": api.control.engines(),
    }))
}
