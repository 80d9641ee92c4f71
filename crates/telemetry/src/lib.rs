//! Metrics of the server: their definitions ([`METRICS`]), one function for each event that is measured, and their text for Prometheus.
//! Other crates call the functions and never the `metrics` crate, so that [`METRICS`] is complete and labels stay bounded: no ids of
//! sandboxes, teams or templates. Without an [`Exporter`] (in tests, say) the functions do nothing.
#![forbid(unsafe_code)]

mod definitions;
mod exporter;
mod process;
mod record;
mod timer;

pub use definitions::{METRICS, Metric, MetricKind};
pub use exporter::{Exporter, TelemetryError};
pub use record::{
    CaptureKind, CreatePath, Outcome, ResumePath, SandboxCounts, edge_request_finished, exec_answered,
    http_request_finished, pool_claimed, set_budget, set_disk, set_sandbox_counts, store_operation_finished,
    sweep_finished,
};
pub use timer::{OperationTimer, build_timer, capture_timer, create_timer, resume_timer};
