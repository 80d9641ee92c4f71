//! Handlers for `/nodes`, for the operator. There is one node: this host.
//! [`HostProbe`] measures it; the program that serves the API provides one.

use std::fmt;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::NodeStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::auth::Admin;
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

/// Id of the only cluster.
const CLUSTER: &str = "00000000-0000-0000-0000-000000000000";

/// Capacity and use of a host.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Its name: the node's id.
    #[serde(skip)]
    pub name: String,
    /// The server's version.
    #[serde(skip)]
    pub version: String,
    /// Processors.
    pub cpu_count: u32,
    /// Share of them that was in use since the last measurement, percent.
    pub cpu_percent: u32,
    /// Memory, bytes.
    pub memory_total_bytes: u64,
    /// Memory in use, bytes.
    pub memory_used_bytes: u64,
    /// Number of huge pages.
    pub huge_pages_total: u64,
    /// Huge pages in use.
    pub huge_pages_used: u64,
    /// Huge pages that are reserved and not yet in use.
    pub huge_pages_reserved: u64,
    /// Size of a huge page, bytes.
    pub huge_page_size_bytes: u64,
    /// Disks with data of sandboxes.
    pub disks: Vec<HostDisk>,
    /// The processor.
    #[serde(skip)]
    pub processor: Processor,
}

/// A mounted file system of a host.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDisk {
    /// Its mount point.
    pub mount_point: String,
    /// Its block device or source.
    pub device: String,
    /// Its type, such as `btrfs`.
    pub filesystem_type: String,
    /// Used space, bytes.
    pub used_bytes: u64,
    /// Size, bytes.
    pub total_bytes: u64,
}

/// A host's processor, with fields of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Processor {
    /// `cpu family`.
    #[serde(rename = "cpuFamily")]
    pub family: String,
    /// `model`.
    #[serde(rename = "cpuModel")]
    pub model: String,
    /// `model name`.
    #[serde(rename = "cpuModelName")]
    pub name: String,
    /// Rust's name of the architecture, such as `x86_64`.
    #[serde(rename = "cpuArchitecture")]
    pub architecture: String,
}

/// Measures a host. May block for some milliseconds.
#[derive(Clone)]
pub struct HostProbe(pub Arc<dyn Fn() -> Host + Send + Sync>);

impl Default for HostProbe {
    fn default() -> Self {
        Self(Arc::new(Host::default))
    }
}

impl fmt::Debug for HostProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostProbe")
    }
}

pub(crate) fn routes() -> RouteTable {
    RouteTable::new().get("/nodes", list).get("/nodes/{nodeID}", get).post("/nodes/{nodeID}", set)
}

/// Returns the node's id and its JSON.
async fn node(api: &Api) -> (String, Value) {
    let probe = api.config.host.clone();
    let host = tokio::task::spawn_blocking(move || (probe.0)()).await.unwrap_or_default();
    let report = api.control.node();
    let mut metrics = json!(host);
    metrics["allocatedCPU"] = report.allocated_cpu.into();
    metrics["allocatedMemoryBytes"] = (report.allocated_memory_mib << 20).into();
    let view = json!({
        "id": host.name,
        "serviceInstanceID": report.instance,
        "clusterID": CLUSTER,
        "status": report.status.as_str(),
        "statusChangedAt": report.since.format(&Rfc3339).unwrap_or_default(),
        "sandboxCount": report.sandboxes,
        "metrics": metrics,
        "createSuccesses": report.successes,
        "createFails": report.failures,
        "sandboxStartingCount": report.starting,
        "version": host.version,
        "commit": host.version,
        "machineInfo": host.processor,
        // Ours, not E2B's.
        "engines": api.control.engines(),
    });
    (host.name, view)
}

async fn list(State(api): State<Api>, _: Admin) -> Json<Vec<Value>> {
    Json(vec![node(&api).await.1])
}

fn unknown() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "Node not found")
}

async fn get(State(api): State<Api>, _: Admin, Segment(id): Segment) -> Result<Json<Value>, ApiError> {
    let (name, view) = node(&api).await;
    if name == id { Ok(Json(view)) } else { Err(unknown()) }
}

#[derive(Debug, Deserialize)]
struct NodeChange {
    status: String,
}

async fn set(
    State(api): State<Api>,
    _: Admin,
    Segment(id): Segment,
    Body(change): Body<NodeChange>,
) -> Result<Response, ApiError> {
    if node(&api).await.0 != id {
        return Err(unknown());
    }
    let status = match change.status.as_str() {
        "ready" => NodeStatus::Ready,
        "draining" => NodeStatus::Draining,
        "standby" => NodeStatus::Standby,
        "connecting" | "unhealthy" => {
            let text = format!("status {} is set by the server only", change.status);
            return Err(ApiError::new(StatusCode::CONFLICT, text));
        }
        _ => return Err(ApiError::bad_request("status is ready, draining or standby")),
    };
    api.control.set_node_status(status);
    Ok(StatusCode::NO_CONTENT.into_response())
}
