//! Lifecycle events of sandboxes, which the server keeps for some days.

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode, query};
use crate::transport::read_json;
use crate::{Client, Result};

/// Maximum number of events in one response.
const PAGE: usize = 100;

/// A lifecycle event of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxEvent {
    /// Its id.
    pub id: String,
    /// Its type, such as `sandbox.lifecycle.created`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Id of the sandbox's execution, which changes with each resume.
    pub sandbox_execution_id: String,
    /// Details.
    #[serde(default)]
    pub event_data: serde_json::Value,
}

impl Client {
    /// Returns the newest events of one sandbox, or of all sandboxes of the team; at most `limit`.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn events(&self, sandbox_id: Option<&str>, limit: usize) -> Result<Vec<SandboxEvent>> {
        let base = match sandbox_id {
            Some(id) => format!("/events/sandboxes/{}", encode(id)),
            None => "/events/sandboxes".to_owned(),
        };
        let mut all = Vec::new();
        while all.len() < limit {
            let page_size = PAGE.min(limit - all.len());
            let page = query(&[("offset", all.len().to_string()), ("limit", page_size.to_string())]);
            let path = format!("{base}{page}");
            let events: Vec<SandboxEvent> = read_json(&self.rest.call(As::Team, Method::GET, &path).await?)?;
            let last = events.len() < page_size;
            all.extend(events);
            if last {
                break;
            }
        }
        Ok(all)
    }
}
