//! The definitions of all metrics: the reference documentation is generated from them.

/// How a metric's values behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows while the server runs.
    Counter,
    /// A number at the moment of the scrape.
    Gauge,
    /// Counts of observed durations by upper bound, with their sum and number.
    Histogram,
}

impl MetricKind {
    /// Prometheus's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric's definition.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name as scraped.
    pub name: &'static str,
    /// How its values behave.
    pub kind: MetricKind,
    /// Names of its labels, each with the values it may have, for people.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it measures.
    pub help: &'static str,
    /// Upper bounds of a histogram's buckets, seconds; empty for other kinds.
    pub buckets: &'static [f64],
}

/// Bounds for what takes milliseconds.
const FAST: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Bounds for what takes seconds to an hour.
const SLOW: &[f64] = &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

const OUTCOME: (&str, &str) = ("outcome", "ok, error");

const fn histogram(
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
    buckets: &'static [f64],
) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help, buckets }
}

const fn counter(
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help, buckets: &[] }
}

const fn gauge(
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help, buckets: &[] }
}

pub(crate) const HTTP_REQUEST: Metric = histogram(
    "cofferdam_http_request_duration_seconds",
    &[("method", "HTTP method"), ("route", "pattern of the path, or none"), ("status", "HTTP status code")],
    "Requests to the REST API, until the response's head.",
    FAST,
);
pub(crate) const EDGE_REQUEST: Metric = counter(
    "cofferdam_edge_requests_total",
    &[("target", "envd, port"), ("status", "1xx, 2xx, 3xx, 4xx, 5xx")],
    "Requests to sandboxes: to envd, or to other ports.",
);
pub(crate) const EXEC: Metric = histogram(
    "cofferdam_exec_duration_seconds",
    &[OUTCOME],
    "Starts of processes in sandboxes (process.Process/Start), from the request to the first byte of the response's body.",
    FAST,
);
pub(crate) const CREATE: Metric = histogram(
    "cofferdam_sandbox_create_duration_seconds",
    &[
        ("path", "pool, warm_start, cold_start, none (refused before one was chosen)"),
        ("outcome", "ok, error, refused (by a limit, or not valid)"),
    ],
    "Creates of sandboxes, until the sandbox can be used.",
    FAST,
);
pub(crate) const POOL_CLAIMS: Metric = counter(
    "cofferdam_pool_claims_total",
    &[("result", "hit, miss")],
    "Creates that asked the pool for a pre-started sandbox of their template.",
);
pub(crate) const SANDBOXES: Metric = gauge(
    "cofferdam_sandboxes",
    &[("state", "running, paused, prestarted")],
    "Sandboxes that run, are paused, or are pre-started in the pool.",
);
pub(crate) const BUDGET_TAKEN: Metric = gauge(
    "cofferdam_budget_taken",
    &[("resource", "client connections, connections to sandboxes, outgoing connections")],
    "How much of a resource that clients and sandboxes share is taken.",
);
pub(crate) const BUDGET_TOTAL: Metric = gauge(
    "cofferdam_budget_total",
    &[("resource", "client connections, connections to sandboxes, outgoing connections")],
    "How much there is of a resource that clients and sandboxes share.",
);
pub(crate) const DISK_FREE: Metric =
    gauge("cofferdam_disk_free_bytes", &[], "Free space of the file system that the data directory is on.");
pub(crate) const DISK_SIZE: Metric =
    gauge("cofferdam_disk_size_bytes", &[], "Size of the file system that the data directory is on.");
pub(crate) const CAPTURE: Metric = histogram(
    "cofferdam_capture_duration_seconds",
    &[("kind", "pause, snapshot, fork, template"), OUTCOME],
    "Captures of sandboxes: what for, and whether they succeeded.",
    FAST,
);
pub(crate) const RESUME: Metric = histogram(
    "cofferdam_resume_duration_seconds",
    &[("path", "frozen (processes thawed), snapshot (restored)"), OUTCOME],
    "Resumes of paused sandboxes, by a call or by traffic.",
    FAST,
);
pub(crate) const BUILD: Metric = histogram(
    "cofferdam_build_duration_seconds",
    &[OUTCOME],
    "Template builds, from their start to the finished template.",
    SLOW,
);
pub(crate) const STORE: Metric = histogram(
    "cofferdam_store_operation_duration_seconds",
    &[("operation", "method of the store"), OUTCOME],
    "Reads and writes of the database.",
    FAST,
);
pub(crate) const SWEPT: Metric = counter(
    "cofferdam_sweeper_findings_total",
    &[],
    "Sandboxes and snapshots of an earlier server process that no record names, removed at the start.",
);
pub(crate) const OPEN_DESCRIPTORS: Metric =
    gauge("process_open_fds", &[], "Open file descriptors of the server process.");
pub(crate) const MAX_DESCRIPTORS: Metric =
    gauge("process_max_fds", &[], "Maximum number of open file descriptors of the server process.");
pub(crate) const RESIDENT_MEMORY: Metric =
    gauge("process_resident_memory_bytes", &[], "Resident memory of the server process, without sandboxes.");
pub(crate) const CPU_SECONDS: Metric =
    counter("process_cpu_seconds_total", &[], "Processor time of the server process, without sandboxes.");

/// All metrics.
pub const METRICS: &[Metric] = &[
    HTTP_REQUEST,
    EDGE_REQUEST,
    EXEC,
    CREATE,
    POOL_CLAIMS,
    SANDBOXES,
    BUDGET_TAKEN,
    BUDGET_TOTAL,
    DISK_FREE,
    DISK_SIZE,
    CAPTURE,
    RESUME,
    BUILD,
    STORE,
    SWEPT,
    OPEN_DESCRIPTORS,
    MAX_DESCRIPTORS,
    RESIDENT_MEMORY,
    CPU_SECONDS,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::METRICS;

    #[test]
    fn the_dashboard_shows_every_metric_and_no_other() {
        let dashboard = include_str!("../../../docs/grafana-dashboard.json");
        let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let shown: BTreeSet<&str> = words
            .filter(|word| word.starts_with("cofferdam_") || word.starts_with("process_"))
            .map(|word| word.trim_end_matches("_bucket").trim_end_matches("_count"))
            .collect();
        let defined: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(shown, defined);
    }
}
