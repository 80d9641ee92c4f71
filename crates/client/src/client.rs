//! A server and its credentials, and the requests about the server itself: health, engine, teams, keys.
//! Requests about keys and teams need the admin token.
//! Create sandboxes with [`Sandbox::create`](crate::Sandbox::create).

use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, Rest, encode};
use crate::transport::{self, Transport, read_json};
use crate::{ClientConfig, Result};

/// A server and the credentials to use it with. Clones share one connection pool.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) rest: Rest,
    pub(crate) config: Arc<ClientConfig>,
}

/// The engine that runs a server's sandboxes, and how well it isolates them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineInfo {
    /// `container` or `microvm`.
    pub name: String,
    /// `shared_kernel`, `hardware_vm` or `emulated_vm`.
    pub isolation: String,
    /// A sentence about what the isolation does and does not protect from.
    pub summary: String,
    /// What the engine can do.
    pub capabilities: EngineCapabilities,
    /// Number of running sandboxes.
    pub running: u64,
    /// All engines of the server, this one first. Templates may name one of them.
    #[serde(default)]
    pub engines: Vec<EngineName>,
}

/// An engine that a template may name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineName {
    /// `container` or `microvm`.
    pub name: String,
    /// `shared_kernel`, `hardware_vm` or `emulated_vm`.
    pub isolation: String,
    /// A sentence about what the isolation does and does not protect from.
    pub summary: String,
}

/// Optional features of an engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineCapabilities {
    /// Whether it captures and restores memory.
    pub memory_snapshots: bool,
    /// Whether it enforces disk limits.
    pub disk_limit: bool,
    /// Whether it enforces limits of processors, memory and processes.
    pub resource_limits: bool,
}

/// A team, the owner of keys and sandboxes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// Its id.
    #[serde(rename = "teamID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether requests without a team act for it.
    pub is_default: bool,
}

/// An API key without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// Its id, by which it is deleted.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The part of the secret that may be shown.
    mask: Mask,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last used, approximately.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub last_used: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mask {
    prefix: String,
    masked_value_prefix: String,
    masked_value_suffix: String,
}

impl ApiKey {
    /// Returns enough of the secret to recognise the key.
    #[must_use]
    pub fn masked(&self) -> String {
        format!("{}{}…{}", self.mask.prefix, self.mask.masked_value_prefix, self.mask.masked_value_suffix)
    }
}

/// A key that was just created. The server shows its secret only this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewApiKey {
    /// The secret, the value for `E2B_API_KEY`.
    pub key: String,
    /// Everything else.
    #[serde(flatten)]
    pub details: ApiKey,
}

impl std::fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewApiKey").field("key", &"…").field("details", &self.details).finish()
    }
}

impl Client {
    /// Makes a client with these settings. It does not connect yet.
    ///
    /// # Errors
    /// An address is not a URL, or a secret contains characters that HTTP headers cannot.
    pub fn new(config: ClientConfig) -> Result<Self> {
        let transport = Transport::new(&config)?;
        Ok(Self { rest: Rest::new(&config, transport)?, config: Arc::new(config) })
    }

    /// Makes a client with the settings of the environment; see [`ClientConfig::from_env`].
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_env() -> Result<Self> {
        Self::new(ClientConfig::from_env())
    }

    /// Checks that the server is up.
    ///
    /// # Errors
    /// It cannot be reached, or reports a failure.
    pub async fn health(&self) -> Result<()> {
        let request = http::Request::get(transport::join(self.rest.base(), "/health")?)
            .body(transport::empty_body())
            .expect("address and method are valid");
        transport::check(&self.rest.transport().exchange(request).await?)
    }

    /// Returns the server's engine. Cofferdam only.
    ///
    /// # Errors
    /// The key is refused, or the server is not Cofferdam.
    pub async fn engine(&self) -> Result<EngineInfo> {
        read_json(&self.rest.call(As::Team, Method::GET, "/cofferdam/v1/engine").await?)
    }

    /// Lists all teams. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn list_teams(&self) -> Result<Vec<Team>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/teams").await?)
    }

    /// Lists the keys of the default team. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn list_keys(&self) -> Result<Vec<ApiKey>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/api-keys").await?)
    }

    /// Creates a key for the default team. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused, or the name is not accepted.
    pub async fn create_key(&self, name: &str) -> Result<NewApiKey> {
        let body = serde_json::json!({ "name": name });
        read_json(&self.rest.call_with(As::Operator, Method::POST, "/api-keys", &body).await?)
    }

    /// Deletes a key of the default team; it is refused from then on. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused, or there is no such key.
    pub async fn delete_key(&self, id: &str) -> Result<()> {
        let path = format!("/api-keys/{}", encode(id));
        transport::check(&self.rest.call(As::Operator, Method::DELETE, &path).await?)
    }
}
