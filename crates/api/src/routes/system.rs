//! Handlers for the operator's care of the server itself. Ours, not E2B's.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::Api;
use crate::auth::Admin;
use crate::route_table::RouteTable;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new().post("/cofferdam/v1/system/prune", prune)
}

/// Removes what builds keep for later ones and what nothing refers to.
async fn prune(State(api): State<Api>, _: Admin) -> Json<Value> {
    let layers = api.control.builds().prune().await;
    Json(json!({ "removedLayers": layers }))
}
