//! The server's pool of pre-started sandboxes. Cofferdam only.
//! The number of sandboxes per template follows the demand, unless the operator sets it.
//! Everything here needs the admin token.

use http::Method;
use serde::{Deserialize, Serialize};

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{Client, Result};

/// The pre-started sandboxes of one template build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolEntry {
    /// Id of the template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its names.
    pub names: Vec<String>,
    /// Number of sandboxes that are ready.
    pub ready: u64,
    /// Number of sandboxes that should be ready.
    pub wanted: u64,
    /// The number that the operator has set.
    pub fixed: Option<u64>,
    /// Number of creates that took a sandbox of the pool.
    pub hits: u64,
    /// Number of creates that found none.
    pub misses: u64,
    /// Memory that the sandboxes use in total, bytes.
    pub memory_bytes: u64,
}

impl Client {
    /// Describes the pool.
    ///
    /// # Errors
    /// The token is refused, or the server cannot be reached.
    pub async fn pool(&self) -> Result<Vec<PoolEntry>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/cofferdam/v1/pool").await?)
    }

    /// Sets how many sandboxes of a template should be ready; `None` lets the number follow the demand.
    ///
    /// # Errors
    /// There is no such template.
    pub async fn set_pool(&self, template_id: &str, ready: Option<u64>) -> Result<()> {
        let path = format!("/cofferdam/v1/pool/{}", encode(template_id));
        let body = serde_json::json!({ "ready": ready });
        check(&self.rest.call_with(As::Operator, Method::PUT, &path, &body).await?)
    }
}
