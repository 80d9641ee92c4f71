//! What happened to sandboxes: reading it back, page by page.
//! Newest first, as the server keeps it for some days.
//! One sandbox's, or the whole team's.

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode, query};
use crate::transport::read_json;
use crate::{Client, Result};

/// Most events in one answer.
const PAGE: usize = 100;

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxEvent {
    /// Its id.
    pub id: String,
    /// What: `sandbox.lifecycle.created` and the like.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// To which sandbox.
    pub sandbox_id: String,
    /// In which run of it.
    pub sandbox_execution_id: String,
    /// Particulars.
    #[serde(default)]
    pub event_data: serde_json::Value,
}

impl Client {
    /// The newest events of one sandbox, or of all the team's; at most `most`.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn events(&self, sandbox: Option<&str>, most: usize) -> Result<Vec<SandboxEvent>> {
        let base = match sandbox {
            Some(id) => format!("/events/sandboxes/{}", encode(id)),
            None => "/events/sandboxes".to_owned(),
        };
        let mut all = Vec::new();
        while all.len() < most {
            let limit = PAGE.min(most - all.len());
            let page = query(&[("offset", all.len().to_string()), ("limit", limit.to_string())]);
            let path = format!("{base}{page}");
            let events: Vec<SandboxEvent> = read_json(&self.rest.call(As::Team, Method::GET, &path).await?)?;
            let last = events.len() < limit;
            all.extend(events);
            if last {
                break;
            }
        }
        Ok(all)
    }
}
