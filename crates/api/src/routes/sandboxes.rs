//! Handlers for sandboxes: create and list (E2B's v1 and v2), get, kill, network rules.
//! Options that this server does not have are refused with their name, not ignored.
//! Every sandbox requires its envd token: the option `secure` has no effect.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use control::{CreateRequest, IdempotencyKey, ListQuery, MountRequest, NetworkUpdate};
use egress_rules::{NetworkRules, ProxyRequest};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::{Lifecycle, NetworkConfig, PauseFallback, SandboxState};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::Caller;
use crate::body::{Json as Body, RawJson};
use crate::paths::{Params, SandboxPath};
use crate::route_table::RouteTable;
use crate::wire::{ListedSandbox, Sandbox, SandboxDetail};
use crate::{Api, ApiError};

/// Time limit of sandboxes whose create names none, seconds.
const DEFAULT_TIMEOUT_V1: i64 = 15;
const DEFAULT_TIMEOUT_V2: i64 = 300;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .post("/sandboxes", create_v1)
        .get("/sandboxes", list_v1)
        .post("/v2/sandboxes", create_v2)
        .get("/v2/sandboxes", list_v2)
        .get("/sandboxes/{sandboxID}", detail)
        .delete("/sandboxes/{sandboxID}", kill)
        .put("/sandboxes/{sandboxID}/network", network)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<i64>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<Network>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_pause_fallback: Option<PauseFallback>,
    auto_resume: Option<AutoResume>,
    volume_mounts: Option<Vec<NewMount>>,
    iam: Option<Iam>,
}

/// `readOnly` and `subPath` are extensions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewMount {
    name: String,
    path: String,
    #[serde(default)]
    read_only: bool,
    sub_path: Option<String>,
}

impl From<NewMount> for MountRequest {
    fn from(mount: NewMount) -> Self {
        let NewMount { name, path, read_only, sub_path } = mount;
        Self { name, path, read_only, sub_path }
    }
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    enabled: bool,
}

#[derive(Debug, Deserialize)]
struct Iam {
    tokens: Option<BTreeMap<String, IamToken>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IamToken {
    audience: Option<String>,
    token_type: Option<String>,
}

impl Iam {
    /// Returns the audiences by name.
    fn audiences(self) -> Result<BTreeMap<String, String>, ApiError> {
        let tokens = self.tokens.unwrap_or_default();
        let one = |(name, token): (String, IamToken)| match token.token_type.as_deref() {
            Some("JWT-SVID") => Ok((name, token.audience.unwrap_or_default())),
            _ => Err(ApiError::bad_request(format!(
                "iam.tokens.{name}.tokenType: only \"JWT-SVID\" is supported"
            ))),
        };
        tokens.into_iter().map(one).collect()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    allow_public_traffic: Option<bool>,
    allow_out: Option<Vec<String>>,
    deny_out: Option<Vec<String>>,
    dns_servers: Option<Vec<String>>,
    mask_request_host: Option<String>,
    rules: Option<NetworkRules>,
    egress_proxy: Option<ProxyRequest>,
    https_ports: Option<Vec<Value>>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
}

impl Network {
    /// Refuses options that this server does not have.
    fn check(&self) -> Result<(), ApiError> {
        let has_ports = self.https_ports.as_ref().is_some_and(|ports| !ports.is_empty());
        refuse([(has_ports, "network.httpsPorts")])
    }

    /// Returns the header rules as they are stored.
    fn take_rules(&mut self) -> Result<Option<NetworkRules>, ApiError> {
        let rules = self.rules.take().map(NetworkRules::normalized).transpose();
        rules.map_err(|error| ApiError::bad_request(error.to_string()))
    }
}

/// Refuses the first of these fields that is used.
fn refuse<const N: usize>(fields: [(bool, &str); N]) -> Result<(), ApiError> {
    match fields.iter().find(|(is_used, _)| *is_used) {
        Some((_, field)) => Err(ApiError::bad_request(format!("{field} is not supported by this server"))),
        None => Ok(()),
    }
}

impl NewSandbox {
    fn into_request(mut self, default_timeout: i64) -> Result<CreateRequest, ApiError> {
        let identity_tokens = self.iam.map(Iam::audiences).transpose()?.unwrap_or_default();
        let (mut rules, mut proxy) = (None, None);
        if let Some(network) = &mut self.network {
            network.check()?;
            rules = network.take_rules()?;
            proxy = network.egress_proxy.take();
        }
        Ok(CreateRequest {
            template: self.template_id,
            timeout: self.timeout.unwrap_or(default_timeout),
            metadata: self.metadata.unwrap_or_default(),
            env_vars: self.env_vars.unwrap_or_default(),
            network: self.network.map(|network| NetworkConfig {
                allow_public_traffic: network.allow_public_traffic,
                allow_out: network.allow_out,
                deny_out: network.deny_out,
                dns_servers: network.dns_servers,
                mask_request_host: network.mask_request_host,
                rules,
                egress_proxy: None,
            }),
            identity_tokens,
            proxy,
            allow_internet_access: self.allow_internet_access,
            lifecycle: Lifecycle {
                auto_pause: self.auto_pause.unwrap_or(false),
                auto_pause_memory: self.auto_pause_memory.unwrap_or(true),
                auto_pause_fallback: self.auto_pause_fallback.unwrap_or_default(),
                auto_resume: self.auto_resume.is_some_and(|resume| resume.enabled),
                ..Lifecycle::default()
            },
            volume_mounts: self.volume_mounts.unwrap_or_default().into_iter().map(Into::into).collect(),
        })
    }
}

async fn create_v1(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let access = api.control.create(&team, body.into_request(DEFAULT_TIMEOUT_V1)?, None).await?;
    Ok((StatusCode::CREATED, Json(Sandbox::new(access, &api.config))))
}

async fn create_v2(
    State(api): State<Api>,
    Caller(team): Caller,
    headers: HeaderMap,
    RawJson(body, bytes): RawJson<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let idempotency = match headers.get("idempotency-key") {
        None => None,
        Some(key) => Some(IdempotencyKey {
            key: key
                .to_str()
                .map_err(|_| ApiError::bad_request("Idempotency-Key must be printable ASCII"))?
                .to_owned(),
            body_hash: Sha256::digest(&bytes).into(),
        }),
    };
    let access = api.control.create(&team, body.into_request(DEFAULT_TIMEOUT_V2)?, idempotency).await?;
    Ok((StatusCode::CREATED, Json(Sandbox::new(access, &api.config))))
}

async fn detail(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<Json<SandboxDetail>, ApiError> {
    Ok(Json(SandboxDetail::new(api.control.get(team.id, &id)?, &api.config)))
}

async fn kill(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    api.control.kill(team.id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn network(
    State(api): State<Api>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
    Body(mut body): Body<Network>,
) -> Result<StatusCode, ApiError> {
    body.check()?;
    let rules = body.take_rules()?;
    let update = NetworkUpdate {
        rules,
        proxy: body.egress_proxy,
        allow_out: body.allow_out,
        deny_out: body.deny_out,
        dns_servers: body.dns_servers,
        allow_internet_access: body.allow_internet_access,
    };
    api.control.update_network(&team, &id, update).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListParams {
    metadata: Option<String>,
    state: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    template: Option<String>,
    limit: Option<String>,
    next_token: Option<String>,
}

impl ListParams {
    fn into_query(self) -> Result<ListQuery, ApiError> {
        let mut states = Vec::new();
        for state in self.state.iter().flat_map(|list| list.split(',')).filter(|state| !state.is_empty()) {
            states.push(match state {
                "running" => SandboxState::Running,
                "paused" => SandboxState::Paused,
                _ => return Err(ApiError::bad_request(format!("Invalid state: {state}"))),
            });
        }
        let ascending = match self.order.as_deref() {
            None | Some("" | "desc") => false,
            Some("asc") => true,
            Some(order) => return Err(ApiError::bad_request(format!("Invalid order: {order}"))),
        };
        let started_after = self
            .started_after
            // A plus that was not percent-encoded arrives as a space; timestamps have no other spaces.
            .map(|at| OffsetDateTime::parse(&at.replace(' ', "+"), &Rfc3339))
            .transpose()
            .map_err(|_| ApiError::bad_request("Invalid startedAfter: not an RFC 3339 time"))?;
        let limit = self
            .limit
            .map(|limit| limit.parse())
            .transpose()
            .map_err(|_| ApiError::bad_request("Invalid limit: not a number"))?;
        Ok(ListQuery {
            metadata: self.metadata,
            states,
            started_after,
            template: self.template,
            ascending,
            limit,
            next_token: self.next_token,
        })
    }
}

/// Returns all running sandboxes, newest first, without pages.
async fn list_v1(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<ListedSandbox>>, ApiError> {
    let mut query =
        ListQuery { metadata: params.metadata, states: vec![SandboxState::Running], ..ListQuery::default() };
    let mut all = Vec::new();
    loop {
        let page = api.control.list(&team, &query)?;
        all.extend(page.items.into_iter().map(ListedSandbox::from));
        query.next_token = page.next_token;
        if query.next_token.is_none() {
            return Ok(Json(all));
        }
    }
}

async fn list_v2(
    State(api): State<Api>,
    Caller(team): Caller,
    Params(params): Params<ListParams>,
) -> Result<impl IntoResponse, ApiError> {
    let page = api.control.list(&team, &params.into_query()?)?;
    let mut headers = HeaderMap::new();
    if let Some(token) = page.next_token.and_then(|token| HeaderValue::from_str(&token).ok()) {
        headers.insert(HeaderName::from_static("x-next-token"), token);
    }
    if let Some(total) = page.total_running {
        headers.insert(HeaderName::from_static("x-total-running"), total.into());
    }
    let items: Vec<ListedSandbox> = page.items.into_iter().map(Into::into).collect();
    Ok((headers, Json(items)))
}
