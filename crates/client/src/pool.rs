//! Sandboxes that wait for their creators, for the operator. Cofferdam only.
//! Without a wish of the operator's their number follows the demand.
//! Everything here needs the admin token.

use http::Method;
use serde::{Deserialize, Serialize};

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{Client, Result};

/// What waits for one build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolEntry {
    /// The template.
    #[serde(rename = "templateID")]
    pub template: String,
    /// Its names.
    pub names: Vec<String>,
    /// Sandboxes that wait.
    pub ready: u64,
    /// How many should.
    pub wanted: u64,
    /// The operator's wish.
    pub fixed: Option<u64>,
    /// Creates that took one.
    pub hits: u64,
    /// Creates that found none.
    pub misses: u64,
    /// Bytes they use together.
    pub memory_bytes: u64,
}

impl Client {
    /// What waits.
    ///
    /// # Errors
    /// The server refused or did not answer.
    pub async fn pool(&self) -> Result<Vec<PoolEntry>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/cofferdam/v1/pool").await?)
    }

    /// Has so many sandboxes of a template wait; none leaves it to the demand.
    ///
    /// # Errors
    /// There is no such template.
    pub async fn set_pool(&self, template: &str, ready: Option<u64>) -> Result<()> {
        let path = format!("/cofferdam/v1/pool/{}", encode(template));
        let body = serde_json::json!({ "ready": ready });
        check(&self.rest.call_with(As::Operator, Method::PUT, &path, &body).await?)
    }
}
