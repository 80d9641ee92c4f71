//! Extractors that authenticate a request: a team by its API key, a user by an access token, the operator by the admin token.
//! Header names and error texts are E2B's. Of several credentials the first valid one counts.
//! Extractors run before the body is read, so a refused request's body is not.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use control::{Authentication, same_secret};
use ids::{KeyId, TeamId};
use store::{Standing, Team, User};

use crate::{Api, ApiError, observe};

/// The team that a request acts for: named by `X-API-Key`, or by `X-Team-ID` together with an access token or `X-Admin-Token`.
pub(crate) struct Caller(pub(crate) Arc<Team>);

/// The API key of a request, among its extensions after [`Caller`] has authenticated it by one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UsedKey(pub(crate) KeyId);

/// The operator, by `X-Admin-Token`.
pub(crate) struct Admin;

/// The operator, by `X-Admin-Token` or by `Authorization: Bearer`, the only header that every Prometheus can send.
pub(crate) struct Scraper;

/// The team whose keys a request manages: the team in `X-Team-ID`, or the default one. The request is authenticated by a member's
/// access token or by `X-Admin-Token`.
pub(crate) struct Manager(pub(crate) Arc<Team>);

/// A user by an access token, or the operator by `X-Admin-Token`.
pub(crate) enum UserOrAdmin {
    User(User),
    Admin,
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let headers = &parts.headers;
        let mut refusal = None;
        // Clients without a key send an empty one.
        if let Some(key) = headers.get("x-api-key").filter(|key| !key.is_empty()) {
            match by_key(api, key.to_str().unwrap_or_default()).await {
                Ok((team, key)) => {
                    let team = admit(api, team, parts)?;
                    parts.extensions.insert(UsedKey(key));
                    return Ok(Self(team));
                }
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
        admin(api, &parts.headers).ok_or_else(missing)??;
        note(parts, Authentication::operator);
        Ok(Self)
    }
}

impl FromRequestParts<Api> for Scraper {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        if let Some(header) = admin(api, &parts.headers) {
            header?;
            note(parts, Authentication::operator);
            return Ok(Self);
        }
        let bearer = parts.headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
        let token = bearer.to_str().unwrap_or_default().strip_prefix("Bearer ").unwrap_or_default();
        check_admin_token(api, token.trim().as_bytes())?;
        note(parts, Authentication::operator);
        Ok(Self)
    }
}

impl FromRequestParts<Api> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let team = by_token_or_admin(api, &parts.headers).await.ok_or_else(missing)??;
        admit(api, team, parts).map(Self)
    }
}

impl FromRequestParts<Api> for UserOrAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        if let Some(user) = user(api, &parts.headers).await {
            let user = user?;
            note(parts, |authentication| authentication.user(user.id));
            return Ok(Self::User(user));
        }
        admin(api, &parts.headers).ok_or_else(missing)??;
        note(parts, Authentication::operator);
        Ok(Self::Admin)
    }
}

/// Admits a request of a team that is known by a token of something of its own.
pub(crate) fn admit_team(api: &Api, team: TeamId, parts: &Parts) -> Result<(), ApiError> {
    let team =
        api.control.team(team).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "Team not found"))?;
    admit(api, team, parts).map(drop)
}

/// Tells the edge whose request this is.
fn note(parts: &Parts, who: impl FnOnce(&Authentication)) {
    if let Some(authentication) = parts.extensions.get() {
        who(authentication);
    }
}

fn missing() -> ApiError {
    ApiError::unauthorized("authorization header is missing")
}

async fn by_key(api: &Api, key: &str) -> Result<(Arc<Team>, KeyId), ApiError> {
    Ok(api.control.authenticate(key).await?)
}

/// Authenticates by an access token or the admin token. Returns `None` if the request has neither.
async fn by_token_or_admin(api: &Api, headers: &HeaderMap) -> Option<Result<Arc<Team>, ApiError>> {
    let mut refusal = None;
    match user(api, headers).await {
        Some(Ok(user)) => match team_of(api, headers, &user).await {
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

/// Authenticates by an access token. Returns `None` if the request has no `Authorization`.
async fn user(api: &Api, headers: &HeaderMap) -> Option<Result<User, ApiError>> {
    let token = headers.get("authorization").filter(|value| !value.is_empty())?.to_str().unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    Some(api.control.authenticate_user(token).await.map_err(Into::into))
}

/// Returns the user's team that `X-Team-ID` names, or the team that the user joined first.
async fn team_of(api: &Api, headers: &HeaderMap, user: &User) -> Result<Arc<Team>, ApiError> {
    let refused = |why: &str| ApiError::unauthorized(format!("Invalid auth provider token teamID.\n{why}"));
    let mut teams = api.control.teams_of(user.id).await?.into_iter();
    let Some(named) = headers.get("x-team-id") else {
        return teams.next().ok_or_else(|| refused("you are not a member of any team"));
    };
    let named: Option<TeamId> = named.to_str().ok().and_then(|text| text.parse().ok());
    let named = named.ok_or_else(|| refused("X-Team-ID must be the id of a team"))?;
    teams.find(|team| team.id == named).ok_or_else(|| refused("you are not a member of this team"))
}

/// Authenticates by `X-Admin-Token`. Returns `None` if the request has no such header.
fn admin(api: &Api, headers: &HeaderMap) -> Option<Result<(), ApiError>> {
    headers.get("x-admin-token").map(|token| check_admin_token(api, token.as_bytes()))
}

fn check_admin_token(api: &Api, given: &[u8]) -> Result<(), ApiError> {
    let expected = api.config.admin_token.as_deref();
    let is_valid = expected.is_some_and(|expected| same_secret(given, expected.as_bytes()));
    is_valid
        .then_some(())
        .ok_or_else(|| ApiError::unauthorized("Invalid Access token.\nInvalid Access token."))
}

fn team_for_admin(api: &Api, headers: &HeaderMap) -> Result<Arc<Team>, ApiError> {
    let Some(team) = headers.get("x-team-id") else { return Ok(api.control.default_team()) };
    let team: Option<TeamId> = team.to_str().ok().and_then(|text| text.parse().ok());
    let team = team.ok_or_else(|| ApiError::bad_request("Invalid team ID"))?;
    api.control.team(team).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "Team not found"))
}

/// Counts the request against the team's rate limits and checks that the team is not banned or blocked from it.
fn admit(api: &Api, team: Arc<Team>, parts: &Parts) -> Result<Arc<Team>, ApiError> {
    observe::record("team_id", team.id);
    note(parts, |authentication| authentication.team(team.id));
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

/// Whether a blocked team may make this request: it may read everything and delete what costs money or is secret.
fn open_to_blocked(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => true,
        Method::DELETE => ["/sandboxes/", "/templates/", "/volumes/", "/api-keys/"]
            .iter()
            .any(|part| path.starts_with(part)),
        _ => false,
    }
}
