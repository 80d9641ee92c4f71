//! What the server says about itself.
//! `/health` is for load balancers, the rest is ours and not E2B's.
//! Teams are shown to the operator only.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::Api;
use crate::auth::{Admin, Caller};

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/health", get(async || "Health check successful"))
        .route("/teams", get(teams))
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
    }))
}

/// Keys are hashed at rest, so none can be shown here.
async fn teams(State(api): State<Api>, _: Admin) -> Json<Vec<Value>> {
    let default = api.control.default_team().id;
    let teams = api.control.teams();
    let view = |team: &store::Team| {
        json!({
            "teamID": team.id,
            "name": team.name,
            "apiKey": "",
            "isDefault": team.id == default,
        })
    };
    Json(teams.iter().map(|team| view(team)).collect())
}
