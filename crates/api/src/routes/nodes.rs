//! Nodes, for the operator. There is one: this machine.
//! What the machine has and uses is looked up by a probe that the binary brings along.
//! Only states an operator can wish for can be set; the others are findings.

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

/// The one cluster there is.
const CLUSTER: &str = "00000000-0000-0000-0000-000000000000";

/// What a machine has and uses.
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
    /// Share of them in use since the last look, percent.
    pub cpu_percent: u32,
    /// Memory there is, bytes.
    pub memory_total_bytes: u64,
    /// Memory in use, bytes.
    pub memory_used_bytes: u64,
    /// Huge pages there are.
    pub huge_pages_total: u64,
    /// Huge pages in use.
    pub huge_pages_used: u64,
    /// Huge pages promised and not yet used.
    pub huge_pages_reserved: u64,
    /// Size of one, bytes.
    pub huge_page_size_bytes: u64,
    /// Disks that sandboxes live on.
    pub disks: Vec<HostDisk>,
    /// The processor.
    #[serde(skip)]
    pub processor: Processor,
}

/// A disk of a machine.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDisk {
    /// Where it is mounted.
    pub mount_point: String,
    /// What is mounted.
    pub device: String,
    /// As what.
    pub filesystem_type: String,
    /// In use, bytes.
    pub used_bytes: u64,
    /// There is, bytes.
    pub total_bytes: u64,
}

/// A machine's processor, in its own words.
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
    /// As Rust calls it.
    #[serde(rename = "cpuArchitecture")]
    pub architecture: String,
}

/// Looks at the machine. May block for a moment.
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
    RouteTable::new().get("/nodes", list).get("/nodes/{nodeID}", look).post("/nodes/{nodeID}", set)
}

/// The node as the contract has it.
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
        // Ours: what keeps sandboxes from this machine.
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

async fn look(State(api): State<Api>, _: Admin, Segment(id): Segment) -> Result<Json<Value>, ApiError> {
    let (name, view) = node(&api).await;
    if name == id { Ok(Json(view)) } else { Err(unknown()) }
}

#[derive(Debug, Deserialize)]
struct Wish {
    status: String,
}

async fn set(
    State(api): State<Api>,
    _: Admin,
    Segment(id): Segment,
    Body(wish): Body<Wish>,
) -> Result<Response, ApiError> {
    if node(&api).await.0 != id {
        return Err(unknown());
    }
    let status = match wish.status.as_str() {
        "ready" => NodeStatus::Ready,
        "draining" => NodeStatus::Draining,
        "standby" => NodeStatus::Standby,
        "connecting" | "unhealthy" => {
            let text = format!("status {} is a finding and cannot be set", wish.status);
            return Err(ApiError::new(StatusCode::CONFLICT, text));
        }
        _ => return Err(ApiError::bad_request("status is ready, draining or standby")),
    };
    api.control.set_node_status(status);
    Ok(StatusCode::NO_CONTENT.into_response())
}
