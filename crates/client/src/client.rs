//! The connection to one server, and what is asked of the server itself: engine, teams, keys.
//! Keys and teams are the operator's business and need the admin token.
//! Sandboxes start at [`Sandbox::create`](crate::Sandbox::create).

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

/// What runs sandboxes on the server, and how far they are kept from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineInfo {
    /// `container` or `microvm`.
    pub name: String,
    /// `shared_kernel`, `hardware_vm` or `emulated_vm`.
    pub isolation: String,
    /// One honest sentence about the isolation.
    pub summary: String,
    /// What the engine can do.
    pub capabilities: EngineCapabilities,
    /// Sandboxes running now.
    pub running: u64,
    /// Every engine that the server runs, this one first: what templates may name.
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
    /// One honest sentence about the isolation.
    pub summary: String,
}

/// What an engine can do beyond starting and killing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineCapabilities {
    /// Captures and restores memory.
    pub memory_snapshots: bool,
    /// Enforces disk limits.
    pub disk_limit: bool,
    /// Enforces processor, memory and process limits.
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
    /// Whether requests that name no team act for it.
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
    /// What may be shown of the secret.
    mask: Mask,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last used, roughly.
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
    /// Enough of the secret to recognise it.
    #[must_use]
    pub fn masked(&self) -> String {
        format!("{}{}…{}", self.mask.prefix, self.mask.masked_value_prefix, self.mask.masked_value_suffix)
    }
}

/// A key just made. Its secret is shown this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewApiKey {
    /// The secret: what goes into `E2B_API_KEY`.
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
    /// A client with these settings. Connects to nothing yet.
    ///
    /// # Errors
    /// An address is no URL, or a secret cannot be one.
    pub fn new(config: ClientConfig) -> Result<Self> {
        let transport = Transport::new(&config)?;
        Ok(Self { rest: Rest::new(&config, transport)?, config: Arc::new(config) })
    }

    /// A client with the environment's settings; see [`ClientConfig::from_env`].
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_env() -> Result<Self> {
        Self::new(ClientConfig::from_env())
    }

    /// Whether the server answers.
    ///
    /// # Errors
    /// It cannot be reached or says that it is not well.
    pub async fn health(&self) -> Result<()> {
        let request = http::Request::get(transport::join(self.rest.base(), "/health")?)
            .body(transport::empty_body())
            .expect("address and method are valid");
        transport::check(&self.rest.transport().exchange(request).await?)
    }

    /// What runs sandboxes there, and how well they are isolated. Cofferdam only.
    ///
    /// # Errors
    /// The key is refused, or the server is another one.
    pub async fn engine(&self) -> Result<EngineInfo> {
        read_json(&self.rest.call(As::Team, Method::GET, "/cofferdam/v1/engine").await?)
    }

    /// All teams. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn list_teams(&self) -> Result<Vec<Team>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/teams").await?)
    }

    /// Keys of the default team. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn list_keys(&self) -> Result<Vec<ApiKey>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/api-keys").await?)
    }

    /// Makes a key for the default team. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused, or the name is not accepted.
    pub async fn create_key(&self, name: &str) -> Result<NewApiKey> {
        let body = serde_json::json!({ "name": name });
        read_json(&self.rest.call_with(As::Operator, Method::POST, "/api-keys", &body).await?)
    }

    /// Deletes a key of the default team; who uses it is refused from then on. Needs the admin token.
    ///
    /// # Errors
    /// The token is refused, or there is no such key.
    pub async fn delete_key(&self, id: &str) -> Result<()> {
        let path = format!("/api-keys/{}", encode(id));
        transport::check(&self.rest.call(As::Operator, Method::DELETE, &path).await?)
    }
}
