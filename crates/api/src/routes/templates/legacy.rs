//! Handlers of E2B's deprecated routes that build templates: `POST /templates`, `/templates/{templateID}` and
//! `/templates/{templateID}/builds/{buildID}` take a Dockerfile as text, `/v2/templates` takes steps.
//! The server parses the Dockerfile; clients push no image to a registry.

use axum::Json;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{StatusCode, header};
use builds::{BuildTarget, DockerfilePlan, NewBuild, PendingBuild};
use catalog::TemplateSummary;
use ids::TemplateId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::builds::{RequestedBuild, build_id, template_id};
use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::wire::Template;
use crate::{Api, ApiError};

pub(super) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/templates", create)
        .post("/templates/{templateID}", rebuild)
        .post("/templates/{templateID}/builds/{buildID}", start)
        .post("/v2/templates", request)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerfileBuild {
    alias: Option<String>,
    dockerfile: Option<String>,
    #[serde(rename = "teamID")]
    team_id: Option<String>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
}

/// Parses the body. Multipart forms are sent by CLIs before v1.
async fn read(request: Request) -> Result<DockerfileBuild, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("multipart/")) {
        return Err(ApiError::bad_request(
            "Endpoint deprecated please update your CLI to the latest version",
        ));
    }
    Body::<DockerfileBuild>::from_request(request, &()).await.map(|Body(body)| body)
}

async fn create(
    State(api): State<Api>,
    Caller(team): Caller,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let body = read(request).await?;
    let target = match given(body.alias.as_deref()) {
        Some(name) => BuildTarget::Named(name),
        None => BuildTarget::Unnamed,
    };
    planned(&api, &team, target, body).await
}

async fn rebuild(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let body = read(request).await?;
    let (entry, _) = api.control.catalog().template_with_builds(&team, &template).await?;
    if let Some(alias) = given(body.alias.as_deref()) {
        let is_known =
            entry.template.names.iter().any(|name| name.alias == alias || name.to_string() == alias);
        if !is_known {
            return Err(ApiError::bad_request(format!(
                "a rebuild cannot give the name '{alias}'; leave alias out, or build a template of that name"
            )));
        }
    }
    let id: TemplateId = entry.template.id;
    planned(&api, &team, BuildTarget::Known(id), body).await
}

async fn planned(
    api: &Api,
    team: &store::Team,
    target: BuildTarget,
    body: DockerfileBuild,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if body.team_id.is_some_and(|id| id != team.id.to_string()) {
        return Err(ApiError::bad_request("Team ID param mismatch with the API key"));
    }
    let dockerfile = body.dockerfile.filter(|text| !text.trim().is_empty());
    let plan = DockerfilePlan {
        dockerfile: dockerfile.ok_or_else(|| ApiError::bad_request("dockerfile is required"))?,
        start_cmd: given(body.start_cmd.as_deref()),
        ready_cmd: given(body.ready_cmd.as_deref()),
    };
    let wanted = NewBuild {
        target,
        tags: Vec::new(),
        cpu_count: body.cpu_count,
        memory_mib: body.memory_mb,
        min_free_disk_mib: None,
    };
    let requested = api.control.builds().request_planned(team, &wanted, &plan).await?;
    answer(api, team, requested).await
}

fn given(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty()).map(str::to_owned)
}

async fn start(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, build)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.builds().start_planned(&team, &template_id(&template)?, build_id(&build)?).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Requests a build whose steps are in the request that starts it.
async fn request(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<RequestedBuild>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let requested = super::builds::requested(&api, &team, body).await?;
    answer(&api, &team, requested).await
}

/// Returns the template as lists have it, with the requested build as its newest.
async fn answer(
    api: &Api,
    team: &store::Team,
    requested: PendingBuild,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let PendingBuild { template, build, tags } = requested;
    let (_, builds) = api.control.catalog().template_with_builds(team, template.id.as_str()).await?;
    let entry = TemplateSummary { template, build: Some(build.into()), build_count: builds.len() };
    let mut value = serde_json::to_value(Template::from(entry)).expect("plain data serialises");
    value["tags"] = json!(tags);
    Ok((StatusCode::ACCEPTED, Json(value)))
}
