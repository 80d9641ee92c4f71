//! Who is calling: a team by its API key, a person by an access token, or the operator by the admin token.
//! Header names and texts follow the wire contract; of several credentials the first good one counts.
//! Being extractors, they answer before a body is read.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use control::same_secret;
use ids::TeamId;
use store::{Standing, Team, User};

use crate::{Api, ApiError};

/// The team a request acts for: by `X-API-Key`; by an access token, or by `X-Admin-Token`, with `X-Team-ID`.
pub(crate) struct Caller(pub(crate) Arc<Team>);

/// The operator.
pub(crate) struct Admin;

/// Whoever may manage a team's keys: a member by an access token, or the operator; the team in `X-Team-ID`, or the
/// default one.
pub(crate) struct Manager(pub(crate) Arc<Team>);

/// A person, or the operator.
pub(crate) enum PersonOrAdmin {
    Person(User),
    Admin,
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let headers = &parts.headers;
        let mut refusal = None;
        // An empty one is what a client without a key sends.
        if let Some(key) = headers.get("x-api-key").filter(|key| !key.is_empty()) {
            match by_key(api, key.to_str().unwrap_or_default()).await {
                Ok(team) => return admit(api, team, parts).map(Self),
                Err(error) => refusal = Some(error),
            }
        }
        match by_token_or_admin(api, headers).await {
            Some(Ok(team)) => admit(api, team, parts).map(Self),
            Some(Err(error)) => Err(refusal.unwrap_or(error)),
            None => Err(refusal.unwrap_or_else(missing)),
        }
    }
}

impl FromRequestParts<Api> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        admin(api, &parts.headers).ok_or_else(missing)?.map(|()| Self)
    }
}

impl FromRequestParts<Api> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let team = by_token_or_admin(api, &parts.headers).await.ok_or_else(missing)??;
        admit(api, team, parts).map(Self)
    }
}

impl FromRequestParts<Api> for PersonOrAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        if let Some(person) = person(api, &parts.headers).await {
            return person.map(Self::Person);
        }
        admin(api, &parts.headers).ok_or_else(missing)?.map(|()| Self::Admin)
    }
}

fn missing() -> ApiError {
    ApiError::unauthorized("authorization header is missing")
}

async fn by_key(api: &Api, key: &str) -> Result<Arc<Team>, ApiError> {
    Ok(api.control.authenticate(key).await?)
}

/// None when neither credential is there.
async fn by_token_or_admin(api: &Api, headers: &HeaderMap) -> Option<Result<Arc<Team>, ApiError>> {
    let mut refusal = None;
    match person(api, headers).await {
        Some(Ok(person)) => match team_of(api, headers, &person).await {
            Ok(team) => return Some(Ok(team)),
            Err(error) => refusal = Some(error),
        },
        Some(Err(error)) => refusal = Some(error),
        None => {}
    }
    match admin(api, headers) {
        Some(Ok(())) => Some(team_for_admin(api, headers)),
        Some(Err(error)) => Some(Err(refusal.unwrap_or(error))),
        None => refusal.map(Err),
    }
}

/// None when there is no such header.
async fn person(api: &Api, headers: &HeaderMap) -> Option<Result<User, ApiError>> {
    let token = headers.get("authorization").filter(|value| !value.is_empty())?.to_str().unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    Some(api.control.authenticate_user(token).await.map_err(Into::into))
}

/// The member's team in `X-Team-ID`, or the one joined first.
async fn team_of(api: &Api, headers: &HeaderMap, person: &User) -> Result<Arc<Team>, ApiError> {
    let refused = |why: &str| ApiError::unauthorized(format!("Invalid auth provider token teamID.\n{why}"));
    let mut teams = api.control.teams_of(person.id).await?.into_iter();
    let Some(named) = headers.get("x-team-id") else {
        return teams.next().ok_or_else(|| refused("you are not a member of any team"));
    };
    let named: Option<TeamId> = named.to_str().ok().and_then(|text| text.parse().ok());
    let named = named.ok_or_else(|| refused("X-Team-ID must be the id of a team"))?;
    teams.find(|team| team.id == named).ok_or_else(|| refused("you are not a member of this team"))
}

/// None when there is no such header.
fn admin(api: &Api, headers: &HeaderMap) -> Option<Result<(), ApiError>> {
    let token = headers.get("x-admin-token")?;
    let known = api.config.admin_token.as_deref();
    let right = known.is_some_and(|known| same_secret(token.as_bytes(), known.as_bytes()));
    Some(
        right
            .then_some(())
            .ok_or_else(|| ApiError::unauthorized("Invalid Access token.\nInvalid Access token.")),
    )
}

fn team_for_admin(api: &Api, headers: &HeaderMap) -> Result<Arc<Team>, ApiError> {
    let Some(team) = headers.get("x-team-id") else { return Ok(api.control.default_team()) };
    let team: Option<TeamId> = team.to_str().ok().and_then(|text| text.parse().ok());
    let team = team.ok_or_else(|| ApiError::bad_request("Invalid team ID"))?;
    api.control.team(team).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "Team not found"))
}

/// Whether the team may do this, now.
fn admit(api: &Api, team: Arc<Team>, parts: &Parts) -> Result<Arc<Team>, ApiError> {
    api.rates.check(team.id, parts)?;
    let forbidden = |text: String| Err(ApiError::new(StatusCode::FORBIDDEN, text));
    match &team.standing {
        Standing::Banned => forbidden("team is banned".to_owned()),
        Standing::Blocked(_) if open_to_blocked(&parts.method, parts.uri.path()) => Ok(team),
        Standing::Blocked(reason) if reason.is_empty() => forbidden("team is blocked".to_owned()),
        Standing::Blocked(reason) => forbidden(format!("team is blocked: {reason}")),
        Standing::Good => Ok(team),
    }
}

/// A blocked team may look at everything and delete what costs its owner.
fn open_to_blocked(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => true,
        Method::DELETE => ["/sandboxes/", "/templates/", "/volumes/", "/api-keys/"]
            .iter()
            .any(|part| path.starts_with(part)),
        _ => false,
    }
}
