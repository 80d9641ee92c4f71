//! Handlers for teams, users and access tokens. E2B's CLI signs in with `GET /teams`; the other routes are for the operator:
//! `/admin/teams` creates and changes teams, `/admin/users` users.
//! Secrets are shown once, in the response to their creation.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control::{EgressChange, LimitsChange, NewTeam, NewToken, TeamChange};
use ids::{TeamId, TokenId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Standing, Team, TeamEgress, User};
use time::OffsetDateTime;

use crate::auth::{Admin, UserOrAdmin};
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::wire::MaskView;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/teams", teams_of_caller)
        .post("/access-tokens", create_token)
        .delete("/access-tokens/{accessTokenID}", remove_token)
        .get("/admin/teams", list)
        .post("/admin/teams", create)
        .get("/admin/teams/{teamID}", get)
        .patch("/admin/teams/{teamID}", change)
        .post("/admin/teams/{teamID}/sandboxes/kill", kill_all)
        .put("/admin/teams/{teamID}/members/{userID}", add_member)
        .delete("/admin/teams/{teamID}/members/{userID}", remove_member)
        .get("/admin/sandboxes/running-counts", running)
        .get("/admin/users", users)
        .post("/admin/users", create_user)
}

/// Returns a user's teams, each with a new API key. For the operator it returns all teams, without keys: the server has only hashes.
async fn teams_of_caller(State(api): State<Api>, caller: UserOrAdmin) -> Result<Json<Vec<Value>>, ApiError> {
    let view = |team: &Team, key: &str, default: bool| json!({ "teamID": team.id, "name": team.name, "apiKey": key, "isDefault": default });
    Ok(Json(match caller {
        UserOrAdmin::User(user) => {
            let teams = api.control.sign_in(user.id).await?;
            teams.iter().enumerate().map(|(at, (team, key))| view(team, key, at == 0)).collect()
        }
        UserOrAdmin::Admin => {
            let default = api.control.default_team().id;
            api.control.teams().iter().map(|team| view(team, "", team.id == default)).collect()
        }
    }))
}

#[derive(Debug, Deserialize)]
struct NewTokenBody {
    name: String,
    #[serde(rename = "userID")]
    user_id: Option<UserId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenView {
    id: TokenId,
    name: String,
    token: String,
    mask: MaskView,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<NewToken> for TokenView {
    fn from(new: NewToken) -> Self {
        Self {
            id: new.record.id,
            name: new.record.name,
            token: new.secret,
            mask: new.record.mask.into(),
            created_at: new.record.created_at,
        }
    }
}

/// Creates an access token for the calling user, or, if the operator calls, for the user in `userID`.
async fn create_token(
    State(api): State<Api>,
    caller: UserOrAdmin,
    Body(body): Body<NewTokenBody>,
) -> Result<(StatusCode, Json<TokenView>), ApiError> {
    let user = match caller {
        UserOrAdmin::User(user) => user.id,
        UserOrAdmin::Admin => body.user_id.ok_or_else(|| {
            ApiError::bad_request("userID is required: whose token is it? See GET /admin/users")
        })?,
    };
    Ok((StatusCode::CREATED, Json(api.control.create_token(user, &body.name).await?.into())))
}

async fn remove_token(
    State(api): State<Api>,
    caller: UserOrAdmin,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    let owner = match caller {
        UserOrAdmin::User(user) => Some(user.id),
        UserOrAdmin::Admin => None,
    };
    let id = id.parse().map_err(|_| ApiError::bad_request("Invalid access token ID"))?;
    api.control.delete_token(owner, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    concurrent_sandboxes: Option<u32>,
    max_length_hours: Option<u32>,
    #[serde(rename = "maxVCPU")]
    max_vcpu: Option<u32>,
    #[serde(rename = "maxMemoryMB")]
    max_memory_mb: Option<u32>,
    #[serde(rename = "maxDiskMB")]
    max_disk_mb: Option<u32>,
    concurrent_builds: Option<u32>,
}

impl From<Limits> for LimitsChange {
    fn from(limits: Limits) -> Self {
        Self {
            concurrent_sandboxes: limits.concurrent_sandboxes,
            max_length_hours: limits.max_length_hours,
            max_vcpu: limits.max_vcpu,
            max_memory_mib: limits.max_memory_mb,
            max_disk_mib: limits.max_disk_mb,
            concurrent_builds: limits.concurrent_builds,
        }
    }
}

/// Lists of networks, addresses and host names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Egress {
    deny: Option<Vec<String>>,
    allow_only: Option<Vec<String>>,
}

impl From<Egress> for EgressChange {
    fn from(egress: Egress) -> Self {
        Self { deny: egress.deny, allow_only: egress.allow_only }
    }
}

#[derive(Debug, Deserialize)]
struct NewTeamBody {
    name: String,
    slug: Option<String>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    egress: Egress,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TeamChangeBody {
    name: Option<String>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    egress: Egress,
    banned: Option<bool>,
    blocked: Option<bool>,
    #[serde(default)]
    blocked_reason: String,
}

impl TeamChangeBody {
    fn standing(&self) -> Result<Option<Standing>, ApiError> {
        match (self.banned, self.blocked) {
            (Some(true), Some(true)) => {
                Err(ApiError::bad_request("banned and blocked exclude each other: set one of them"))
            }
            (Some(true), _) => Ok(Some(Standing::Banned)),
            (_, Some(true)) => Ok(Some(Standing::Blocked(self.blocked_reason.clone()))),
            (None, None) => Ok(None),
            _ => Ok(Some(Standing::Good)),
        }
    }
}

fn view(api: &Api, team: &Team) -> Value {
    let reason = match &team.standing {
        Standing::Blocked(reason) => Some(reason),
        _ => None,
    };
    let egress_view = |egress: &TeamEgress| json!({ "deny": egress.deny, "allowOnly": egress.allow_only });
    json!({
        "teamID": team.id,
        "name": team.name,
        "slug": team.slug,
        "isDefault": team.id == api.control.default_team().id,
        "createdAt": team.created_at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        "limits": {
            "concurrentSandboxes": team.limits.concurrent_sandboxes,
            "maxLengthHours": team.limits.max_length_hours,
            "maxVCPU": team.limits.max_vcpu,
            "maxMemoryMB": team.limits.max_memory_mib,
            "maxDiskMB": team.limits.max_disk_mib,
            "concurrentBuilds": team.limits.concurrent_builds,
        },
        "egress": egress_view(&team.egress),
        "egressOfAllTeams": egress_view(&api.control.egress_of_all()),
        "banned": team.standing == Standing::Banned,
        "blocked": reason.is_some(),
        "blockedReason": reason,
        "runningSandboxes": api.control.running_by_team().get(&team.id).copied().unwrap_or(0),
    })
}

async fn list(State(api): State<Api>, _: Admin) -> Json<Vec<Value>> {
    Json(api.control.teams().iter().map(|team| view(&api, team)).collect())
}

async fn create(
    State(api): State<Api>,
    _: Admin,
    Body(body): Body<NewTeamBody>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (limits, egress) = (body.limits.into(), body.egress.into());
    let new = NewTeam { name: body.name, slug: body.slug, limits, egress };
    let team = api.control.create_team(new).await?;
    Ok((StatusCode::CREATED, Json(view(&api, &team))))
}

async fn get(State(api): State<Api>, _: Admin, Segment(team): Segment) -> Result<Json<Value>, ApiError> {
    let team = api.control.team(team_id(&team)?);
    let team = team.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "Team not found"))?;
    Ok(Json(view(&api, &team)))
}

async fn change(
    State(api): State<Api>,
    _: Admin,
    Segment(team): Segment,
    Body(body): Body<TeamChangeBody>,
) -> Result<Json<Value>, ApiError> {
    let standing = body.standing()?;
    let (limits, egress) = (body.limits.into(), body.egress.into());
    let change = TeamChange { name: body.name, limits, egress, standing };
    let team = api.control.change_team(team_id(&team)?, change).await?;
    Ok(Json(view(&api, &team)))
}

async fn kill_all(State(api): State<Api>, _: Admin, Segment(team): Segment) -> Result<Json<Value>, ApiError> {
    let count = api.control.kill_all(team_id(&team)?).await?;
    Ok(Json(json!({ "killedCount": count.killed, "failedCount": count.failed })))
}

async fn running(State(api): State<Api>, _: Admin) -> Json<Value> {
    Json(json!(api.control.running_by_team()))
}

#[derive(Debug, Deserialize)]
struct NewUserBody {
    email: String,
}

fn user_view(user: &User) -> Value {
    json!({ "id": user.id, "email": user.email })
}

async fn users(State(api): State<Api>, _: Admin) -> Result<Json<Vec<Value>>, ApiError> {
    Ok(Json(api.control.users().await?.iter().map(user_view).collect()))
}

async fn create_user(
    State(api): State<Api>,
    _: Admin,
    Body(body): Body<NewUserBody>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    Ok((StatusCode::CREATED, Json(user_view(&api.control.create_user(&body.email).await?))))
}

async fn add_member(
    State(api): State<Api>,
    _: Admin,
    Path((team, user)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.add_member(team_id(&team)?, user_id(&user)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_member(
    State(api): State<Api>,
    _: Admin,
    Path((team, user)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.remove_member(team_id(&team)?, user_id(&user)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn team_id(text: &str) -> Result<TeamId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid team ID"))
}

fn user_id(text: &str) -> Result<UserId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid user ID"))
}
