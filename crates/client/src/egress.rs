//! Connections of sandboxes to hosts, which the server keeps for some days.

use std::net::IpAddr;

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode, query};
use crate::transport::read_json;
use crate::{Client, Result};

/// Connections of a sandbox to one host with one outcome, within some seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxConnections {
    /// When the first of them ended.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// The name that the client sent, if the server has read it.
    pub host: Option<String>,
    /// The address, if there is one.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `connected`, `refused`, `failed` or `various`.
    pub verdict: String,
    /// Why they were refused or failed.
    pub reason: Option<String>,
    /// Number of connections.
    pub count: u64,
    /// Bytes to the host.
    pub sent_bytes: u64,
    /// Bytes from the host.
    pub received_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct EgressBody {
    connections: Vec<SandboxConnections>,
}

impl Client {
    /// Returns the newest connections of a sandbox to hosts, running or ended, newest first; at most `limit`, which is at most 1,000.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn egress(&self, sandbox_id: &str, limit: usize) -> Result<Vec<SandboxConnections>> {
        let path =
            format!("/sandboxes/{}/egress{}", encode(sandbox_id), query(&[("limit", limit.to_string())]));
        let body: EgressBody = read_json(&self.rest.call(As::Team, Method::GET, &path).await?)?;
        Ok(body.connections)
    }
}
