//! What a sandbox goes through besides starting and ending: pause and resume, snapshots, forks, rollback.
//! A snapshot is named by its id or name wherever a template is: [`CreateOptions::new`](crate::CreateOptions::new) starts from it.
//! Time limits are whole seconds.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::rest::{As, encode, query};
use crate::sandbox::{Access, DEFAULT_TIMEOUT, PAGE, seconds};
use crate::transport::{check, read_json};
use crate::{Client, Error, Result, Sandbox};

/// What happens to a sandbox when its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTimeout {
    /// It ends.
    #[default]
    Kill,
    /// It is paused.
    Pause {
        /// With its memory; otherwise only files are kept.
        memory: bool,
        /// Whether traffic to one of its ports resumes it; only with memory.
        auto_resume: bool,
    },
}

impl OnTimeout {
    /// The fields of a create that say so.
    pub(crate) fn fields(self) -> Map<String, Value> {
        let mut fields = Map::new();
        if let Self::Pause { memory, auto_resume } = self {
            fields.insert("autoPause".into(), true.into());
            fields.insert("autoPauseMemory".into(), memory.into());
            fields.insert("autoResume".into(), json!({ "enabled": auto_resume }));
        }
        fields
    }
}

/// How to pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseOptions {
    /// Keep the memory and all processes; otherwise files only, and a resume is a cold start.
    pub memory: bool,
    /// Refuse when the sandbox's agent does not answer.
    pub require_healthy: bool,
}

impl Default for PauseOptions {
    fn default() -> Self {
        Self { memory: true, require_healthy: false }
    }
}

/// How to snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Its name, with a tag if wanted: `name`, `name:tag`. It moves there from the snapshot that had it.
    pub name: Option<String>,
    /// Keep the memory and all processes; otherwise files only.
    pub memory: bool,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { name: None, memory: true }
    }
}

/// A captured state that sandboxes can be started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What sandboxes are created from.
    #[serde(rename = "snapshotID")]
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
}

/// Which snapshots to list; all by default.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only those taken of this sandbox.
    pub sandbox: Option<String>,
    /// Only those of this name, with this tag if it has one.
    pub name: Option<String>,
}

/// One fork: a sandbox or why there is none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Forked {
    Sandbox(Access),
    Error { code: u16, message: String },
}

impl Sandbox {
    /// Resumes a paused sandbox without its memory: a cold start on its files. One that runs is joined as it is.
    ///
    /// # Errors
    /// As [`Sandbox::connect`].
    pub async fn reboot(client: &Client, id: &str, timeout: Option<Duration>) -> Result<Self> {
        let body = json!({ "timeout": seconds(timeout.unwrap_or(DEFAULT_TIMEOUT)), "memory": false });
        Self::connect_with(client, id, &body).await
    }

    /// Pauses a sandbox by its id. Its state is durable when this returns. Answers whether it was running.
    ///
    /// # Errors
    /// There is no such sandbox, or it could not be captured: then it goes on.
    pub async fn pause_by_id(client: &Client, id: &str, options: PauseOptions) -> Result<bool> {
        let body = json!({ "memory": options.memory, "requireHealthyGuest": options.require_healthy });
        let path = format!("/sandboxes/{}/pause", encode(id));
        match check(&client.rest.call_with(As::Team, Method::POST, &path, &body).await?) {
            Ok(()) => Ok(true),
            Err(Error::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pauses it; [`Sandbox::connect`] resumes it, after which this handle is good again.
    ///
    /// # Errors
    /// As [`Sandbox::pause_by_id`].
    pub async fn pause(&self, options: PauseOptions) -> Result<bool> {
        Self::pause_by_id(&self.client, &self.id, options).await
    }

    /// Captures a running sandbox by its id; it goes on.
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

    /// Captures it; it goes on.
    ///
    /// # Errors
    /// As [`Sandbox::snapshot_by_id`].
    pub async fn snapshot(&self, options: &SnapshotOptions) -> Result<Snapshot> {
        Self::snapshot_by_id(&self.client, &self.id, options).await
    }

    /// Forks a running sandbox by its id into `count` others that live for `timeout`; it goes on. Each fork succeeds or
    /// fails by itself.
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
        let answer = client.rest.call_with(As::Team, Method::POST, &path, &body).await?;
        let forks: Vec<Forked> = read_json(&answer)?;
        let forks = forks.into_iter().map(|fork| match fork {
            Forked::Sandbox(access) => Self::from_access(client, access),
            Forked::Error { code, message } => Err(Error::from_code(code, message)),
        });
        Ok(forks.collect())
    }

    /// Forks it; it goes on.
    ///
    /// # Errors
    /// As [`Sandbox::fork_by_id`].
    pub async fn fork(&self, count: u32, timeout: Option<Duration>) -> Result<Vec<Result<Self>>> {
        Self::fork_by_id(&self.client, &self.id, count, timeout).await
    }

    /// Puts a running sandbox back to one of its own snapshots; what it did since is gone. Cofferdam only.
    ///
    /// # Errors
    /// There is no such sandbox or snapshot, or it is another sandbox's. If the snapshot cannot be brought back the sandbox
    /// is left paused at it.
    pub async fn rollback_by_id(client: &Client, id: &str, snapshot: &str) -> Result<()> {
        let body = json!({ "snapshotID": snapshot });
        let path = format!("/sandboxes/{}/rollback", encode(id));
        check(&client.rest.call_with(As::Team, Method::POST, &path, &body).await?)
    }

    /// Puts it back to one of its own snapshots; this handle stays good. Cofferdam only.
    ///
    /// # Errors
    /// As [`Sandbox::rollback_by_id`].
    pub async fn rollback(&self, snapshot: &str) -> Result<()> {
        Self::rollback_by_id(&self.client, &self.id, snapshot).await
    }
}

impl Client {
    /// Snapshots of the key's team, newest first.
    ///
    /// # Errors
    /// The key is refused, or the name is malformed.
    pub async fn list_snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>> {
        let mut pairs = vec![("limit", PAGE.to_owned())];
        pairs.extend(filter.sandbox.clone().map(|id| ("sandboxID", id)));
        pairs.extend(filter.name.clone().map(|name| ("name", name)));
        self.pages("/snapshots", &pairs).await
    }

    /// Deletes a snapshot by its id or name; sandboxes started from it go on. Answers whether there was one.
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

    /// All items of a list, page by page.
    pub(crate) async fn pages<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        pairs: &[(&str, String)],
    ) -> Result<Vec<T>> {
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let mut page = pairs.to_vec();
            page.extend(token.map(|token| ("nextToken", token)));
            let answer = self.rest.call(As::Team, Method::GET, &format!("{path}{}", query(&page))).await?;
            all.extend(read_json::<Vec<T>>(&answer)?);
            let next = answer.headers().get("x-next-token").and_then(|token| token.to_str().ok());
            match next.filter(|token| !token.is_empty()) {
                Some(next) => token = Some(next.to_owned()),
                None => return Ok(all),
            }
        }
    }
}
