//! Pause and resume, snapshots, forks and rollback of sandboxes.
//! The id or name of a snapshot may be used in place of a template's, as in [`CreateOptions::new`](crate::CreateOptions::new).
//! Time limits are whole seconds.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::rest::{As, encode, query};
use crate::sandbox::{Access, DEFAULT_TIMEOUT, PAGE, seconds};
use crate::transport::{check, read_json};
use crate::{Client, Error, Result, Sandbox};

/// What happens to a sandbox at the end of its time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTimeout {
    /// It is killed.
    #[default]
    Kill,
    /// It is paused.
    Pause {
        /// Whether its memory is kept; otherwise only its files are.
        memory: bool,
        /// Whether requests to its ports resume it; only with memory.
        auto_resume: bool,
        /// Whether it is killed if it cannot be paused so; otherwise it is then paused without its memory.
        or_kill: bool,
    },
}

impl OnTimeout {
    /// Returns the fields of a create request for it.
    pub(crate) fn fields(self) -> Map<String, Value> {
        let mut fields = Map::new();
        if let Self::Pause { memory, auto_resume, or_kill } = self {
            fields.insert("autoPause".into(), true.into());
            fields.insert("autoPauseMemory".into(), memory.into());
            fields.insert("autoPauseFallback".into(), if or_kill { "kill" } else { "filesystem" }.into());
            fields.insert("autoResume".into(), json!({ "enabled": auto_resume }));
        }
        fields
    }
}

/// Options of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseOptions {
    /// Whether to keep memory and processes; otherwise only files, and a resume is a cold start.
    pub memory: bool,
    /// Whether to fail if the sandbox's envd does not answer.
    pub require_healthy: bool,
}

impl Default for PauseOptions {
    fn default() -> Self {
        Self { memory: true, require_healthy: false }
    }
}

/// Options of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Its name, optionally with a tag: `name`, `name:tag`. Another snapshot with this name loses it.
    pub name: Option<String>,
    /// Whether to keep memory and processes; otherwise only files.
    pub memory: bool,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { name: None, memory: true }
    }
}

/// A snapshot of a sandbox, from which others can be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    #[serde(rename = "snapshotID")]
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
}

/// Which snapshots to list; all by default.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only snapshots of this sandbox.
    pub sandbox: Option<String>,
    /// Only snapshots with this name, and this tag if it contains one.
    pub name: Option<String>,
}

/// The outcome of one fork.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Forked {
    Sandbox(Access),
    Error { code: u16, message: String },
}

impl Sandbox {
    /// Resumes a paused sandbox without its memory, by a cold start on its files. A running sandbox is only connected to.
    ///
    /// # Errors
    /// As [`Sandbox::connect`].
    pub async fn reboot(client: &Client, id: &str, timeout: Option<Duration>) -> Result<Self> {
        let body = json!({ "timeout": seconds(timeout.unwrap_or(DEFAULT_TIMEOUT)), "memory": false });
        Self::connect_with(client, id, &body).await
    }

    /// Pauses a sandbox by its id. The snapshot is durable when this returns. Returns whether the sandbox was running.
    ///
    /// # Errors
    /// There is no such sandbox, or it could not be captured and keeps running.
    pub async fn pause_by_id(client: &Client, id: &str, options: PauseOptions) -> Result<bool> {
        let body = json!({ "memory": options.memory, "requireHealthyGuest": options.require_healthy });
        let path = format!("/sandboxes/{}/pause", encode(id));
        match check(&client.rest.call_with(As::Team, Method::POST, &path, &body).await?) {
            Ok(()) => Ok(true),
            Err(Error::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pauses the sandbox. [`Sandbox::connect`] resumes it, after which this handle is valid again.
    ///
    /// # Errors
    /// As [`Sandbox::pause_by_id`].
    pub async fn pause(&self, options: PauseOptions) -> Result<bool> {
        Self::pause_by_id(&self.client, &self.id, options).await
    }

    /// Takes a snapshot of a running sandbox by its id; the sandbox keeps running.
    ///
    /// # Errors
    /// There is no such sandbox, it is paused, the name is not accepted, or it could not be captured.
    pub async fn snapshot_by_id(client: &Client, id: &str, options: &SnapshotOptions) -> Result<Snapshot> {
        let mut body = json!({ "memory": options.memory });
        if let Some(name) = &options.name {
            body["name"] = name.as_str().into();
        }
        let path = format!("/sandboxes/{}/snapshots", encode(id));
        read_json(&client.rest.call_with(As::Team, Method::POST, &path, &body).await?)
    }

    /// Takes a snapshot of the sandbox, which keeps running.
    ///
    /// # Errors
    /// As [`Sandbox::snapshot_by_id`].
    pub async fn snapshot(&self, options: &SnapshotOptions) -> Result<Snapshot> {
        Self::snapshot_by_id(&self.client, &self.id, options).await
    }

    /// Forks a running sandbox by its id into `count` others with the time limit `timeout`; the sandbox keeps running.
    /// Each fork succeeds or fails separately.
    ///
    /// # Errors
    /// There is no such sandbox, it is paused, the count is out of range, or it could not be captured.
    pub async fn fork_by_id(
        client: &Client,
        id: &str,
        count: u32,
        timeout: Option<Duration>,
    ) -> Result<Vec<Result<Self>>> {
        let body = json!({ "count": count, "timeout": seconds(timeout.unwrap_or(DEFAULT_TIMEOUT)) });
        let path = format!("/sandboxes/{}/fork", encode(id));
        let response = client.rest.call_with(As::Team, Method::POST, &path, &body).await?;
        let forks: Vec<Forked> = read_json(&response)?;
        let forks = forks.into_iter().map(|fork| match fork {
            Forked::Sandbox(access) => Self::from_access(client, access),
            Forked::Error { code, message } => Err(Error::from_code(code, message)),
        });
        Ok(forks.collect())
    }

    /// Forks the sandbox, which keeps running.
    ///
    /// # Errors
    /// As [`Sandbox::fork_by_id`].
    pub async fn fork(&self, count: u32, timeout: Option<Duration>) -> Result<Vec<Result<Self>>> {
        Self::fork_by_id(&self.client, &self.id, count, timeout).await
    }

    /// Replaces a running sandbox's state by one of its own snapshots; later changes are lost. Cofferdam only.
    ///
    /// # Errors
    /// There is no such sandbox or snapshot, or the snapshot is of another sandbox. If the snapshot cannot be restored,
    /// the sandbox is paused at it.
    pub async fn rollback_by_id(client: &Client, id: &str, snapshot: &str) -> Result<()> {
        let body = json!({ "snapshotID": snapshot });
        let path = format!("/sandboxes/{}/rollback", encode(id));
        check(&client.rest.call_with(As::Team, Method::POST, &path, &body).await?)
    }

    /// Replaces the sandbox's state by one of its own snapshots; this handle stays valid. Cofferdam only.
    ///
    /// # Errors
    /// As [`Sandbox::rollback_by_id`].
    pub async fn rollback(&self, snapshot: &str) -> Result<()> {
        Self::rollback_by_id(&self.client, &self.id, snapshot).await
    }
}

impl Client {
    /// Lists the snapshots of the key's team, newest first.
    ///
    /// # Errors
    /// The key is refused, or the name is malformed.
    pub async fn list_snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>> {
        let mut pairs = vec![("limit", PAGE.to_owned())];
        pairs.extend(filter.sandbox.clone().map(|id| ("sandboxID", id)));
        pairs.extend(filter.name.clone().map(|name| ("name", name)));
        self.pages("/snapshots", &pairs).await
    }

    /// Deletes a snapshot by its id or name; sandboxes created from it keep running. Returns whether it existed.
    ///
    /// # Errors
    /// The key is refused or the server cannot be reached.
    pub async fn delete_snapshot(&self, id: &str) -> Result<bool> {
        let path = format!("/templates/{}", encode(id));
        match check(&self.rest.call(As::Team, Method::DELETE, &path).await?) {
            Ok(()) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Requests all pages of a list.
    pub(crate) async fn pages<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        pairs: &[(&str, String)],
    ) -> Result<Vec<T>> {
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let mut page = pairs.to_vec();
            page.extend(token.map(|token| ("nextToken", token)));
            let response = self.rest.call(As::Team, Method::GET, &format!("{path}{}", query(&page))).await?;
            all.extend(read_json::<Vec<T>>(&response)?);
            let next = response.headers().get("x-next-token").and_then(|token| token.to_str().ok());
            match next.filter(|token| !token.is_empty()) {
                Some(next) => token = Some(next.to_owned()),
                None => return Ok(all),
            }
        }
    }
}
