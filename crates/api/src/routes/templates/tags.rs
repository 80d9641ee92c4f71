//! Handlers for tags of a template's builds: assign, remove, list, count, look up, and the history of assignments.
//! Only ready builds are considered. E2B writes `buildId` in histories and `buildID` elsewhere.
//! Cursors are positions: a list that changes between two pages may repeat or miss an item.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use catalog::{TagInfo, TagPage};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::{Params, Segment};
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/templates/tags", assign)
        .delete("/templates/tags", remove)
        .get("/templates/{templateID}/tags", list)
        .get("/templates/{templateID}/tags/count", count)
        .get("/templates/{templateID}/tags/exists", exists)
        .get("/templates/{templateID}/tags/groups", groups)
        .get("/templates/{templateID}/tags/{tag}/assignments", assignments)
}

#[derive(Debug, Deserialize)]
struct Assign {
    target: String,
    tags: Vec<String>,
}

async fn assign(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<Assign>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (build, tags) = api.control.catalog().assign_tags(&team, &body.target, &body.tags).await?;
    Ok((StatusCode::CREATED, Json(json!({ "tags": tags, "buildID": build.to_string() }))))
}

#[derive(Debug, Deserialize)]
struct Remove {
    name: String,
    tags: Vec<String>,
}

async fn remove(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<Remove>,
) -> Result<StatusCode, ApiError> {
    api.control.remove_tags(&team, &body.name, &body.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).expect("records have four-digit years")
}

async fn list(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
) -> Result<Json<Value>, ApiError> {
    let tags = api.control.catalog().tags(&team, &template).await?;
    let items = tags.iter().filter_map(|(tag, infos)| {
        let TagInfo { assignment, build } = infos.first()?;
        let at = rfc3339(assignment.created_at);
        Some(json!({ "tag": tag, "buildID": build.id.to_string(), "createdAt": at }))
    });
    Ok(Json(items.collect()))
}

async fn count(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "total": api.control.catalog().tags(&team, &template).await?.len() })))
}

#[derive(Debug, Deserialize)]
struct ExistsParams {
    tag: String,
}

async fn exists(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
    Params(params): Params<ExistsParams>,
) -> Result<Json<Value>, ApiError> {
    let (exists, tag) = api.control.catalog().tag_exists(&team, &template, &params.tag).await?;
    Ok(Json(json!({ "exists": exists, "normalizedTag": tag })))
}

fn assignment(info: &TagInfo) -> Value {
    let TagInfo { assignment, build } = info;
    let name = format!(
        "{}\0{}\0{}\0{}",
        assignment.template,
        assignment.tag,
        build.id,
        assignment.created_at.unix_timestamp_nanos()
    );
    json!({
        "assignmentId": Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()),
        "buildId": build.id.to_string(),
        "assignedAt": rfc3339(assignment.created_at),
        "buildCreatedAt": rfc3339(build.created_at),
        "buildFinishedAt": build.finished_at.map(rfc3339),
    })
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    #[default]
    LatestDesc,
    LatestAsc,
    NameAsc,
    NameDesc,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupParams {
    assignment_limit: Option<usize>,
    tags_limit: Option<usize>,
    tags_cursor: Option<String>,
    search: Option<String>,
    sort: Option<Sort>,
}

async fn groups(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
    Params(params): Params<GroupParams>,
) -> Result<Json<Value>, ApiError> {
    let from = position(params.tags_cursor.as_deref())?;
    let tags = api.control.catalog().tags(&team, &template).await?;
    let search = params.search.unwrap_or_default().to_lowercase();
    let mut found: Vec<(String, Vec<TagInfo>)> =
        tags.into_iter().filter(|(tag, _)| tag.contains(&search)).collect();
    let latest = |infos: &[TagInfo]| infos.first().map(|info| info.assignment.created_at);
    // They are sorted by name.
    match params.sort.unwrap_or_default() {
        Sort::NameAsc => {}
        Sort::NameDesc => found.reverse(),
        Sort::LatestAsc => found.sort_by_key(|(_, infos)| latest(infos)),
        Sort::LatestDesc => found.sort_by_key(|(_, infos)| std::cmp::Reverse(latest(infos))),
    }
    let page = TagPage::of(found, from, params.tags_limit.unwrap_or(25).clamp(1, 100));
    let max = params.assignment_limit.unwrap_or(6).clamp(1, 100);
    let groups = page.items.iter().map(|(tag, infos)| {
        let shown: Vec<Value> = infos.iter().take(max).map(assignment).collect();
        json!({ "tag": tag, "assignments": shown, "hasMore": infos.len() > max })
    });
    let groups: Vec<Value> = groups.collect();
    Ok(Json(json!({ "tags": groups, "nextCursor": page.next.map(|at| at.to_string()) })))
}

#[derive(Debug, Deserialize)]
struct PageParams {
    cursor: Option<String>,
    limit: Option<usize>,
}

async fn assignments(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, tag)): Path<(String, String)>,
    Params(params): Params<PageParams>,
) -> Result<Json<Value>, ApiError> {
    let from = position(params.cursor.as_deref())?;
    let (_, tag) = api.control.catalog().tag_exists(&team, &template, &tag).await?;
    let infos = api.control.catalog().tags(&team, &template).await?.remove(&tag).unwrap_or_default();
    let page = TagPage::of(infos, from, params.limit.unwrap_or(50).clamp(1, 100));
    let items: Vec<Value> = page.items.iter().map(assignment).collect();
    Ok(Json(json!({ "data": items, "nextCursor": page.next.map(|at| at.to_string()) })))
}

fn position(cursor: Option<&str>) -> Result<usize, ApiError> {
    match cursor.filter(|cursor| !cursor.is_empty()) {
        None => Ok(0),
        Some(cursor) => cursor.parse().map_err(|_| ApiError::bad_request("Invalid cursor")),
    }
}
