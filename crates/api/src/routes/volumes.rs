//! Handlers for volumes: create, list, get with a token for the content, delete; size and limit as an extension.
//! An id that is none is a 404: the SDKs take it for "there is no such volume".

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use store::Volume;

use crate::auth::{Caller, UsedKey};
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/volumes", create)
        .get("/volumes", list)
        .get("/volumes/{volumeID}", get)
        .delete("/volumes/{volumeID}", delete)
        .get("/cofferdam/v1/volumes/{volumeID}", usage)
        .patch("/cofferdam/v1/volumes/{volumeID}", change)
        .post("/cofferdam/v1/volumes/{volumeID}/copies", copy)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewVolume {
    name: String,
    #[serde(rename = "sizeLimitMB")]
    size_limit_mb: Option<u32>,
}

#[derive(Debug, Serialize)]
struct VolumeView {
    #[serde(rename = "volumeID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl VolumeView {
    fn of(volume: &Volume) -> Self {
        Self { id: volume.id.to_string(), name: volume.name.clone(), token: None }
    }

    fn with_token(api: &Api, volume: &Volume, key: Option<Extension<UsedKey>>) -> Self {
        let key = key.map(|Extension(UsedKey(key))| key);
        Self { token: Some(api.control.volumes().token(volume.id, key)), ..Self::of(volume) }
    }
}

/// A volume with how much room it takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeUsageView {
    #[serde(flatten)]
    volume: VolumeView,
    used_bytes: u64,
    #[serde(rename = "sizeLimitMB")]
    size_limit_mb: Option<u32>,
    /// Whether the storage of this server enforces the limit.
    limit_enforced: bool,
}

async fn create(
    State(api): State<Api>,
    Caller(team): Caller,
    key: Option<Extension<UsedKey>>,
    Body(body): Body<NewVolume>,
) -> Result<(StatusCode, Json<VolumeView>), ApiError> {
    let volume = api.control.volumes().create(&team, &body.name, body.size_limit_mb).await?;
    Ok((StatusCode::CREATED, Json(VolumeView::with_token(&api, &volume, key))))
}

#[derive(Debug, Deserialize)]
struct NewCopy {
    name: String,
}

async fn copy(
    State(api): State<Api>,
    Caller(team): Caller,
    key: Option<Extension<UsedKey>>,
    Segment(id): Segment,
    Body(body): Body<NewCopy>,
) -> Result<(StatusCode, Json<VolumeView>), ApiError> {
    let volume = api.control.volumes().copy(&team, &id, &body.name).await?;
    Ok((StatusCode::CREATED, Json(VolumeView::with_token(&api, &volume, key))))
}

async fn list(State(api): State<Api>, Caller(team): Caller) -> Json<Vec<VolumeView>> {
    let volumes = api.control.volumes().of_team(team.id);
    Json(volumes.iter().map(|volume| VolumeView::of(volume)).collect())
}

async fn get(
    State(api): State<Api>,
    Caller(team): Caller,
    key: Option<Extension<UsedKey>>,
    Segment(id): Segment,
) -> Result<Json<VolumeView>, ApiError> {
    let volume = api.control.volumes().get(team.id, &id)?;
    Ok(Json(VolumeView::with_token(&api, &volume, key)))
}

async fn delete(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.control.volumes().delete(team.id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn usage(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<Json<VolumeUsageView>, ApiError> {
    let volume = api.control.volumes().get(team.id, &id)?;
    Ok(Json(usage_of(&api, &volume).await?))
}

#[derive(Debug, Deserialize)]
struct VolumeChange {
    #[serde(rename = "sizeLimitMB")]
    size_limit_mb: Option<u32>,
}

/// Sets the limit; null or none removes it.
async fn change(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
    Body(body): Body<VolumeChange>,
) -> Result<Json<VolumeUsageView>, ApiError> {
    let volume = api.control.volumes().set_limit(team.id, &id, body.size_limit_mb).await?;
    Ok(Json(usage_of(&api, &volume).await?))
}

async fn usage_of(api: &Api, volume: &Volume) -> Result<VolumeUsageView, ApiError> {
    let usage = api.control.volumes().usage(volume.id).await?;
    Ok(VolumeUsageView {
        volume: VolumeView::of(volume),
        used_bytes: usage.used,
        size_limit_mb: volume.size_limit_mib,
        limit_enforced: usage.limit.is_some() || volume.size_limit_mib.is_none(),
    })
}
