//! Metrics of the server: their definitions ([`METRICS`]), one function for each event that is measured, and their text for Prometheus.
//! Other crates call the functions and never the `metrics` crate, so that [`METRICS`] is complete and labels stay bounded: no ids of
//! sandboxes, teams or templates. Without an [`Exporter`] (in tests, say) the functions do nothing.
#![forbid(unsafe_code)]

mod definitions;
mod exporter;
mod process;
mod record;

pub use definitions::{METRICS, Metric, MetricKind};
pub use exporter::{Exporter, TelemetryError};
pub use record::{
    CaptureKind, CreatePath, Outcome, ResumePath, SandboxCounts, build_finished, capture_finished,
    create_finished, edge_request_finished, exec_answered, http_request_finished, pool_claimed,
    resume_finished, set_sandbox_counts, store_operation_finished, sweep_finished,
};
