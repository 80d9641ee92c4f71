//! Handlers for templates: list, get with builds, look up by name, delete, publish.
//! `builds` and `legacy` have the requests that build templates, `uploads` the files for builds, `tags` the tags of builds, and
//! `archives` export and import. A template's name in a path may contain `%2F`: `team%2Fname` is one segment.

mod archives;
mod builds;
mod legacy;
mod tags;
mod uploads;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::{Params, Segment};
use crate::route_table::RouteTable;
use crate::wire::{Template, TemplateBuild};
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/templates", list)
        .get("/v2/templates", list)
        .get("/default-templates", defaults)
        .get("/templates/aliases/{alias}", alias)
        .get("/templates/{templateID}", get)
        .delete("/templates/{templateID}", delete)
        .patch("/templates/{templateID}", publish)
        .patch("/v2/templates/{templateID}", publish)
        .merge(archives::routes())
        .merge(builds::routes())
        .merge(legacy::routes())
        .merge(tags::routes())
        .merge(uploads::routes())
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
    let templates = api.control.templates_visible_to(team.id).await.into_iter();
    Ok(Json(templates.map(|summary| Template::seen_by(team.id, summary)).collect()))
}

async fn defaults(State(api): State<Api>, _: Caller) -> Json<Vec<Template>> {
    let templates = api.control.catalog().default_templates().into_iter().map(Template::from);
    Json(templates.map(Template::into_default).collect())
}

async fn alias(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(alias): Segment,
) -> Result<Json<Value>, ApiError> {
    let template = api.control.catalog().template_by_alias(&team, &alias).await?;
    Ok(Json(json!({ "templateID": template.id, "public": template.public })))
}

async fn get(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<Json<Value>, ApiError> {
    let (entry, builds) = api.control.catalog().template_with_builds(&team, &id).await?;
    let mut value = serde_json::to_value(Template::from(entry)).expect("plain data serialises");
    let builds: Vec<TemplateBuild> = builds.iter().map(|build| TemplateBuild::from(&**build)).collect();
    value["builds"] = json!(builds);
    Ok(Json(value))
}

/// Deletes a template or a snapshot, which is a template of one build.
async fn delete(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.control.delete_template(&team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct PublishBody {
    public: bool,
}

async fn publish(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
    Body(body): Body<PublishBody>,
) -> Result<Json<Value>, ApiError> {
    let template = api.control.catalog().publish(&team, &id, body.public).await?;
    let names: Vec<String> = template.names.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "names": names, "public": template.public })))
}
