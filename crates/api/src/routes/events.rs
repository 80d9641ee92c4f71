//! Handlers for events of sandboxes and for webhooks, as E2B documents them.
//! Responses are camel case; deliveries to webhooks are snake case, as E2B's are.
//! A sandbox of another team has no events, which is no error.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use events::{NewWebhook, WebhookChange, event_label};
use ids::{SandboxId, TeamId, WebhookId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Event, EventKind, EventQuery, Webhook};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::{SandboxPath, Segment};
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

const DEFAULT_LIMIT: u32 = 10;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/events/sandboxes", of_team)
        .get("/events/sandboxes/{sandboxID}", of_sandbox)
        .get("/events/webhooks", list)
        .post("/events/webhooks", create)
        .get("/events/webhooks/{webhookID}", get)
        .patch("/events/webhooks/{webhookID}", change)
        .delete("/events/webhooks/{webhookID}", remove)
}

/// Parses the parameters of a query. `types` may be repeated, or a list with commas.
fn query(team: TeamId, sandbox: Option<SandboxId>, raw: Option<&str>) -> Result<EventQuery, ApiError> {
    let mut query =
        EventQuery { team, sandbox, kinds: Vec::new(), ascending: false, offset: 0, limit: DEFAULT_LIMIT };
    for (name, value) in form_urlencoded::parse(raw.unwrap_or_default().as_bytes()) {
        let number = || {
            value
                .parse()
                .map_err(|_| ApiError::bad_request(format!("Invalid {name}: not a number of 0 or more")))
        };
        match name.as_ref() {
            "offset" => query.offset = number()?,
            "limit" => query.limit = number()?,
            "orderAsc" => {
                query.ascending = value
                    .parse()
                    .map_err(|_| ApiError::bad_request("Invalid orderAsc: it is true or false"))?;
            }
            "types" => query.kinds.extend(kinds(value.split(',').filter(|kind| !kind.is_empty()))?),
            _ => {}
        }
    }
    Ok(query)
}

fn kinds<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<EventKind>, ApiError> {
    names
        .map(|name| {
            EventKind::parse(name).ok_or_else(|| {
                let known = EventKind::ALL.map(EventKind::as_str).join(", ");
                ApiError::bad_request(format!("Invalid event type '{name}'; there are {known}"))
            })
        })
        .collect()
}

fn view(event: &Event) -> Value {
    json!({
        "id": event.id,
        "version": "v2",
        "type": event.kind.as_str(),
        "timestamp": event.at.format(&Rfc3339).unwrap_or_default(),
        "eventCategory": "lifecycle",
        "eventLabel": event_label(event.kind),
        "eventData": event.body.data,
        "sandboxId": event.sandbox,
        "sandboxExecutionId": event.body.execution,
        "sandboxTemplateId": event.body.template,
        "sandboxBuildId": event.body.build,
        "sandboxTeamId": event.team,
    })
}

async fn of_team(
    State(api): State<Api>,
    Caller(team): Caller,
    RawQuery(raw): RawQuery,
) -> Result<Json<Vec<Value>>, ApiError> {
    let events = api.control.events().list(&query(team.id, None, raw.as_deref())?).await?;
    Ok(Json(events.iter().map(view).collect()))
}

async fn of_sandbox(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    RawQuery(raw): RawQuery,
) -> Result<Json<Vec<Value>>, ApiError> {
    let events = api.control.events().list(&query(team.id, Some(id), raw.as_deref())?).await?;
    Ok(Json(events.iter().map(view).collect()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewWebhookBody {
    name: String,
    url: String,
    enabled: Option<bool>,
    events: Vec<String>,
    signature_secret: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebhookChangeBody {
    name: Option<String>,
    url: Option<String>,
    enabled: Option<bool>,
    events: Option<Vec<String>>,
    signature_secret: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebhookView {
    id: WebhookId,
    #[serde(rename = "teamID")]
    team_id: TeamId,
    name: String,
    url: String,
    enabled: bool,
    events: Vec<&'static str>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Arc<Webhook>> for WebhookView {
    fn from(webhook: Arc<Webhook>) -> Self {
        Self {
            id: webhook.id,
            team_id: webhook.team,
            name: webhook.name.clone(),
            url: webhook.url.clone(),
            enabled: webhook.enabled,
            events: webhook.events.iter().map(|kind| kind.as_str()).collect(),
            created_at: webhook.created_at,
        }
    }
}

async fn list(State(api): State<Api>, Caller(team): Caller) -> Json<Vec<WebhookView>> {
    Json(api.control.events().webhooks(team.id).into_iter().map(Into::into).collect())
}

async fn create(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<NewWebhookBody>,
) -> Result<(StatusCode, Json<WebhookView>), ApiError> {
    let new = NewWebhook {
        name: body.name,
        url: body.url,
        enabled: body.enabled.unwrap_or(true),
        events: kinds(body.events.iter().map(String::as_str))?,
        secret: body.signature_secret,
    };
    Ok((StatusCode::CREATED, Json(api.control.events().create_webhook(team.id, new).await?.into())))
}

async fn get(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<Json<WebhookView>, ApiError> {
    Ok(Json(api.control.events().webhook(team.id, webhook_id(&id)?)?.into()))
}

async fn change(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
    Body(body): Body<WebhookChangeBody>,
) -> Result<Json<WebhookView>, ApiError> {
    let change = WebhookChange {
        name: body.name,
        url: body.url,
        enabled: body.enabled,
        events: body.events.map(|events| kinds(events.iter().map(String::as_str))).transpose()?,
        secret: body.signature_secret,
    };
    Ok(Json(api.control.events().change_webhook(team.id, webhook_id(&id)?, change).await?.into()))
}

/// The status is 200, not 204, as E2B documents it.
async fn remove(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.control.events().delete_webhook(team.id, webhook_id(&id)?).await?;
    Ok(StatusCode::OK)
}

fn webhook_id(text: &str) -> Result<WebhookId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid webhook ID"))
}
