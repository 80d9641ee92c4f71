//! Handlers for API keys: `/api-keys` for members and the operator, about the team in `X-Team-ID`;
//! `/admin/teams/{teamID}/api-keys` for the operator alone.
//! A key's secret is shown once, in the response to its creation.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use ids::{KeyId, TeamId};
use serde::Deserialize;

use crate::auth::{Admin, Manager};
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::wire::Key;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/api-keys", list)
        .post("/api-keys", create)
        .delete("/api-keys/{apiKeyID}", remove)
        .patch("/api-keys/{apiKeyID}", rename)
        .get("/admin/teams/{teamID}/api-keys", list_for)
        .post("/admin/teams/{teamID}/api-keys", create_for)
        .delete("/admin/teams/{teamID}/api-keys/{apiKeyID}", remove_for)
}

#[derive(Debug, Deserialize)]
struct KeyName {
    name: String,
}

async fn list(State(api): State<Api>, Manager(team): Manager) -> Result<Json<Vec<Key>>, ApiError> {
    let keys = api.control.list_keys(team.id).await?;
    Ok(Json(keys.into_iter().map(Into::into).collect()))
}

async fn create(
    State(api): State<Api>,
    Manager(team): Manager,
    Body(body): Body<KeyName>,
) -> Result<(StatusCode, Json<Key>), ApiError> {
    let key = api.control.create_key(team.id, &body.name).await?;
    Ok((StatusCode::CREATED, Json(key.into())))
}

async fn rename(
    State(api): State<Api>,
    Manager(team): Manager,
    Segment(id): Segment,
    Body(body): Body<KeyName>,
) -> Result<StatusCode, ApiError> {
    api.control.rename_key(team.id, key_id(&id)?, &body.name).await?;
    Ok(StatusCode::OK)
}

async fn remove(
    State(api): State<Api>,
    Manager(team): Manager,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.control.delete_key(team.id, key_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_for(
    State(api): State<Api>,
    _: Admin,
    Segment(team): Segment,
) -> Result<Json<Vec<Key>>, ApiError> {
    let team = api.control.team(team_id(&team)?).ok_or(control::ControlError::TeamNotFound)?;
    let keys = api.control.list_keys(team.id).await?;
    Ok(Json(keys.into_iter().map(Into::into).collect()))
}

async fn create_for(
    State(api): State<Api>,
    _: Admin,
    Segment(team): Segment,
    Body(body): Body<KeyName>,
) -> Result<(StatusCode, Json<Key>), ApiError> {
    let key = api.control.create_key(team_id(&team)?, &body.name).await?;
    Ok((StatusCode::CREATED, Json(key.into())))
}

async fn remove_for(
    State(api): State<Api>,
    _: Admin,
    Path((team, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.delete_key(team_id(&team)?, key_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn key_id(text: &str) -> Result<KeyId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid API key ID"))
}

fn team_id(text: &str) -> Result<TeamId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid team ID"))
}
