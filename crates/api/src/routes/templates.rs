//! Templates that exist: lists and the question whether a name is taken.
//! Building them is another interface.
//! A name may hold `%2F`: `team%2Fname` is one segment.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::paths::{Params, Segment};
use crate::wire::Template;
use crate::{Api, ApiError};

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/templates", get(list))
        .route("/v2/templates", get(list))
        .route("/templates/aliases/{alias}", get(alias))
}

#[derive(Debug, Deserialize)]
struct ListParams {
    #[serde(rename = "teamID")]
    team_id: Option<String>,
}

async fn list(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<Template>>, ApiError> {
    if params.team_id.is_some_and(|id| id != team.id.to_string()) {
        return Err(ApiError::bad_request("Team ID param mismatch with the API key"));
    }
    Ok(Json(api.control.list_templates(team.id).into_iter().map(Into::into).collect()))
}

async fn alias(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(alias): Segment,
) -> Result<Json<Value>, ApiError> {
    let template = api.control.template_by_alias(&team, &alias).await?;
    Ok(Json(json!({ "templateID": template.id, "public": template.public })))
}
