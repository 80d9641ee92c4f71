//! Sandboxes: create, list, connect, kill. [`Commands`], [`Files`] and [`Pty`] use one.
//! Dropping a [`Sandbox`] does not end the sandbox; its time limit or [`Sandbox::kill`] does.
//! Time limits are whole seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::envd::Envd;
use crate::rest::{As, encode, query};
use crate::signature::{self, Operation, SignedUrlOptions};
use crate::transport::{self, check, read_json};
use crate::{Client, Commands, Error, Files, OnTimeout, Pty, Result, VolumeMount};

pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum number of items in one page of a list.
pub(crate) const PAGE: &str = "100";

/// Options of a new sandbox.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Template by name or id.
    pub template: String,
    /// Time limit; 5 minutes by default.
    pub timeout: Duration,
    /// Labels to find it by.
    pub metadata: BTreeMap<String, String>,
    /// Environment variables of all its processes.
    pub envs: BTreeMap<String, String>,
    /// Whether it may connect to the internet.
    pub allow_internet_access: bool,
    /// What happens at the end of the time limit.
    pub on_timeout: OnTimeout,
    /// Volumes that it mounts.
    pub volumes: Vec<VolumeMount>,
    /// Creates with the same key return the same sandbox, so that a create whose response was lost can be repeated.
    /// 1 to 255 printable characters; `None` sends no key.
    pub idempotency_key: Option<String>,
}

impl CreateOptions {
    /// Options for a sandbox from a template, with all defaults.
    #[must_use]
    pub fn new(template: impl Into<String>) -> Self {
        Self {
            template: template.into(),
            timeout: DEFAULT_TIMEOUT,
            metadata: BTreeMap::new(),
            envs: BTreeMap::new(),
            allow_internet_access: true,
            on_timeout: OnTimeout::Kill,
            volumes: Vec::new(),
            idempotency_key: None,
        }
    }
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self::new("base")
    }
}

/// Which sandboxes to list; all by default.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only those with all of these labels.
    pub metadata: BTreeMap<String, String>,
    /// Only those in one of these states.
    pub states: Vec<SandboxState>,
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// It runs.
    Running,
    /// It is paused and can be resumed.
    Paused,
}

impl SandboxState {
    /// Returns the name in the REST interface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// A sandbox as the server describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo {
    /// The sandbox's id.
    #[serde(rename = "sandboxID")]
    pub id: String,
    /// Id of its template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Name of its template, if it has one.
    #[serde(default)]
    pub alias: Option<String>,
    /// Whether it runs.
    pub state: SandboxState,
    /// When it was created or resumed.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When its time limit ends.
    #[serde(with = "time::serde::rfc3339")]
    pub end_at: OffsetDateTime,
    /// Processors.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mib: u32,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_mib: u32,
    /// Its labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Version of its envd.
    pub envd_version: String,
}

/// The server's response to create and connect.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Access {
    #[serde(rename = "sandboxID")]
    id: String,
    envd_access_token: Option<String>,
    traffic_access_token: Option<String>,
    domain: Option<String>,
}

/// A handle to a sandbox. Clones refer to the same sandbox.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) client: Client,
    envd: Envd,
    pub(crate) id: String,
    domain: String,
    envd_token: Option<String>,
    traffic_token: Option<String>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Creates a sandbox. It is ready when this returns.
    ///
    /// # Errors
    /// The template is unknown, a limit is reached, or the server cannot start the sandbox; or the idempotency key was used
    /// with other options before (`Server`, 422), or is used by an unfinished create (`Conflict`).
    pub async fn create(client: &Client, options: CreateOptions) -> Result<Self> {
        let mut body = json!({
            "templateID": options.template,
            "timeout": seconds(options.timeout),
            "metadata": options.metadata,
            "envVars": options.envs,
            "secure": true,
            "allow_internet_access": options.allow_internet_access,
            "volumeMounts": options.volumes,
        });
        body.as_object_mut().expect("the body is an object").extend(options.on_timeout.fields());
        let key = options.idempotency_key.as_deref();
        let response = client.rest.call_once(As::Team, Method::POST, "/v2/sandboxes", &body, key).await?;
        Self::from_access(client, read_json(&response)?)
    }

    /// Connects to a sandbox by its id, and resumes it if it is paused. Its time limit is extended to `timeout` from now
    /// if it would end before.
    ///
    /// # Errors
    /// There is no such sandbox, or it could not be resumed and is still paused.
    pub async fn connect(client: &Client, id: &str, timeout: Option<Duration>) -> Result<Self> {
        let body = json!({ "timeout": seconds(timeout.unwrap_or(DEFAULT_TIMEOUT)) });
        Self::connect_with(client, id, &body).await
    }

    pub(crate) async fn connect_with(client: &Client, id: &str, body: &Value) -> Result<Self> {
        let path = format!("/v2/sandboxes/{}/connect", encode(id));
        let response = client.rest.call_with(As::Team, Method::POST, &path, body).await?;
        Self::from_access(client, read_json(&response)?)
    }

    pub(crate) fn from_access(client: &Client, access: Access) -> Result<Self> {
        let domain = client.config.sandbox_domain(access.domain);
        let base = client.config.envd_base(&access.id, &domain)?;
        let transport = client.rest.transport().clone();
        let envd = Envd::new(transport, base, &access.id, access.envd_access_token.as_deref())?;
        Ok(Self {
            client: client.clone(),
            envd,
            id: access.id,
            domain,
            envd_token: access.envd_access_token,
            traffic_token: access.traffic_access_token,
        })
    }

    /// Returns a handle to a running sandbox whose envd token is known. Nothing is sent.
    ///
    /// # Errors
    /// The id or the token cannot be in a header.
    pub fn attach(client: &Client, id: &str, envd_token: &str) -> Result<Self> {
        let access = Access {
            id: id.to_owned(),
            envd_access_token: Some(envd_token.to_owned()),
            traffic_access_token: None,
            domain: None,
        };
        Self::from_access(client, access)
    }

    /// Lists the sandboxes of the key's team, newest first.
    ///
    /// # Errors
    /// The key is refused.
    pub async fn list(client: &Client, options: &ListOptions) -> Result<Vec<SandboxInfo>> {
        let states: Vec<&str> = options.states.iter().map(|state| state.as_str()).collect();
        // The labels are a query string inside the query string.
        let metadata: Vec<String> = options
            .metadata
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        let mut pairs = vec![("limit", PAGE.to_owned())];
        if !states.is_empty() {
            pairs.push(("state", states.join(",")));
        }
        if !metadata.is_empty() {
            pairs.push(("metadata", metadata.join("&")));
        }
        client.pages("/v2/sandboxes", &pairs).await
    }

    /// Kills a sandbox by its id. Returns whether it existed.
    ///
    /// # Errors
    /// The key is refused or the server cannot be reached.
    pub async fn kill_by_id(client: &Client, id: &str) -> Result<bool> {
        let path = format!("/sandboxes/{}", encode(id));
        match check(&client.rest.call(As::Team, Method::DELETE, &path).await?) {
            Ok(()) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the host name at which one of its ports is reached.
    #[must_use]
    pub fn host(&self, port: u16) -> String {
        format!("{port}-{}.{}", self.id, self.domain)
    }

    /// The token that its ports require (`e2b-traffic-access-token`), if they are not public.
    #[must_use]
    pub fn traffic_token(&self) -> Option<&str> {
        self.traffic_token.as_deref()
    }

    /// Commands in the sandbox.
    #[must_use]
    pub fn commands(&self) -> Commands<'_> {
        Commands { envd: &self.envd }
    }

    /// Terminals in the sandbox.
    #[must_use]
    pub fn pty(&self) -> Pty<'_> {
        Pty { envd: &self.envd }
    }

    /// Files in the sandbox, as its default user.
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        Files { envd: &self.envd, user: None }
    }

    /// Kills the sandbox. Returns whether it still existed.
    ///
    /// # Errors
    /// As [`Sandbox::kill_by_id`].
    pub async fn kill(&self) -> Result<bool> {
        Self::kill_by_id(&self.client, &self.id).await
    }

    /// Sets the time limit to this long from now, later or earlier than before.
    ///
    /// # Errors
    /// It has ended, or the time is more than the server allows.
    pub async fn set_timeout(&self, timeout: Duration) -> Result<()> {
        let path = format!("/sandboxes/{}/timeout", encode(&self.id));
        let body = json!({ "timeout": seconds(timeout) });
        check(&self.client.rest.call_with(As::Team, Method::POST, &path, &body).await?)
    }

    /// Asks the server to describe the sandbox.
    ///
    /// # Errors
    /// It has ended.
    pub async fn info(&self) -> Result<SandboxInfo> {
        let path = format!("/sandboxes/{}", encode(&self.id));
        read_json(&self.client.rest.call(As::Team, Method::GET, &path).await?)
    }

    /// Asks envd whether the sandbox runs.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn is_running(&self) -> Result<bool> {
        self.envd.is_running().await
    }

    /// Returns a URL at which one file can be read or written without credentials.
    ///
    /// # Errors
    /// The sandbox has no token to sign with.
    pub fn signed_url(&self, path: &str, operation: Operation, options: &SignedUrlOptions) -> Result<String> {
        let token = self.envd_token.as_deref();
        let token = token.ok_or_else(|| Error::InvalidArgument("the sandbox has no access token".into()))?;
        let mut pairs = vec![("path", path.to_owned())];
        pairs.extend(options.user.clone().map(|user| ("username", user)));
        pairs.push(("signature", signature::sign(path, operation, options, token)));
        pairs.extend(options.expires_at.map(|at| ("signature_expiration", at.to_string())));
        let base = self.client.config.direct_base(&self.id, &self.domain)?;
        Ok(transport::join(&base, &format!("{}{}", envd_api::paths::FILES, query(&pairs)))?.to_string())
    }
}

/// Whole seconds, rounded up: half a second must not become zero.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
