//! One function for each event that is measured. Label values are enums or bounded by the caller.

use std::time::Duration;

use metrics::Label;

use crate::Metric;
use crate::definitions::{
    BUDGET_TAKEN, BUDGET_TOTAL, BUILD, CAPTURE, CREATE, DISK_FREE, DISK_SIZE, EDGE_REQUEST, EXEC,
    HTTP_REQUEST, POOL_CLAIMS, RESUME, SANDBOXES, STORE, SWEPT,
};

/// Whether an operation succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Ok,
    /// It failed.
    Error,
    /// It was not tried: a limit was reached or the request was not valid.
    Refused,
}

impl Outcome {
    /// [`Outcome::Ok`] or [`Outcome::Error`].
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Ok } else { Self::Error }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Refused => "refused",
        }
    }
}

/// Where a new sandbox came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatePath {
    /// A pre-started sandbox was claimed.
    Pool,
    /// It was restored from a memory snapshot.
    WarmStart,
    /// It was booted from files.
    ColdStart,
    /// The create failed before this was decided.
    None,
}

/// What a capture was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureKind {
    /// A pause.
    Pause,
    /// A snapshot that outlives its sandbox.
    Snapshot,
    /// Forks of a running sandbox.
    Fork,
    /// The warm start of a template.
    Template,
}

/// How a paused sandbox was resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumePath {
    /// Its frozen processes were thawed.
    Frozen,
    /// It was restored from its snapshot.
    Snapshot,
}

/// Numbers of sandboxes at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxCounts {
    /// Running, with an owner.
    pub running: usize,
    /// Paused.
    pub paused: usize,
    /// Pre-started, in the pool.
    pub prestarted: usize,
}

/// Records a request to the REST API. `route` is the pattern of the path, not the path.
pub fn http_request_finished(method: &str, route: &str, status: u16, took: Duration) {
    let method = match method {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        // A client may send any word.
        _ => "other",
    };
    let labels = vec![
        Label::from_static_parts("method", method),
        Label::new("route", route.to_owned()),
        Label::new("status", status.to_string()),
    ];
    observe(&HTTP_REQUEST, labels, took);
}

/// Records a request to a sandbox's envd or to another of its ports, by the response's status.
pub fn edge_request_finished(to_envd: bool, status: u16) {
    let class = match status {
        100..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    };
    let target = if to_envd { "envd" } else { "port" };
    let labels = vec![Label::from_static_parts("target", target), Label::from_static_parts("status", class)];
    count(&EDGE_REQUEST, labels, 1);
}

/// Records the first byte of the response to a start of a process, or its failure.
pub fn exec_answered(outcome: Outcome, took: Duration) {
    observe(&EXEC, vec![outcome_label(outcome)], took);
}

/// Records a create.
pub(crate) fn create_finished(path: CreatePath, outcome: Outcome, took: Duration) {
    let path = match path {
        CreatePath::Pool => "pool",
        CreatePath::WarmStart => "warm_start",
        CreatePath::ColdStart => "cold_start",
        CreatePath::None => "none",
    };
    observe(&CREATE, vec![Label::from_static_parts("path", path), outcome_label(outcome)], took);
}

/// Records whether a create found a pre-started sandbox.
pub fn pool_claimed(hit: bool) {
    let result = if hit { "hit" } else { "miss" };
    count(&POOL_CLAIMS, vec![Label::from_static_parts("result", result)], 1);
}

/// Records a capture.
pub(crate) fn capture_finished(kind: CaptureKind, outcome: Outcome, took: Duration) {
    let kind = match kind {
        CaptureKind::Pause => "pause",
        CaptureKind::Snapshot => "snapshot",
        CaptureKind::Fork => "fork",
        CaptureKind::Template => "template",
    };
    observe(&CAPTURE, vec![Label::from_static_parts("kind", kind), outcome_label(outcome)], took);
}

/// Records a resume.
pub(crate) fn resume_finished(path: ResumePath, outcome: Outcome, took: Duration) {
    let path = match path {
        ResumePath::Frozen => "frozen",
        ResumePath::Snapshot => "snapshot",
    };
    observe(&RESUME, vec![Label::from_static_parts("path", path), outcome_label(outcome)], took);
}

/// Records a template build.
pub(crate) fn build_finished(outcome: Outcome, took: Duration) {
    observe(&BUILD, vec![outcome_label(outcome)], took);
}

/// Records a call of the store.
pub fn store_operation_finished(operation: &'static str, outcome: Outcome, took: Duration) {
    observe(&STORE, vec![Label::from_static_parts("operation", operation), outcome_label(outcome)], took);
}

/// Records how much a sweep removed.
pub fn sweep_finished(removed: usize) {
    count(&SWEPT, Vec::new(), removed as u64);
}

/// Sets the numbers of sandboxes.
pub fn set_sandbox_counts(counts: SandboxCounts) {
    let SandboxCounts { running, paused, prestarted } = counts;
    for (state, number) in [("running", running), ("paused", paused), ("prestarted", prestarted)] {
        set(&SANDBOXES, vec![Label::from_static_parts("state", state)], number as u64);
    }
}

/// Sets how much of a shared resource is taken, and how much there is.
pub fn set_budget(resource: &'static str, taken: usize, total: usize) {
    let label = || vec![Label::from_static_parts("resource", resource)];
    set(&BUDGET_TAKEN, label(), taken as u64);
    set(&BUDGET_TOTAL, label(), total as u64);
}

/// Sets free space and size of the file system that the data directory is on, bytes.
pub fn set_disk(free: u64, size: u64) {
    set(&DISK_FREE, Vec::new(), free);
    set(&DISK_SIZE, Vec::new(), size);
}

fn outcome_label(outcome: Outcome) -> Label {
    Label::from_static_parts("outcome", outcome.name())
}

fn observe(metric: &Metric, labels: Vec<Label>, took: Duration) {
    check(metric, &labels);
    metrics::histogram!(metric.name, labels).record(took.as_secs_f64());
}

fn count(metric: &Metric, labels: Vec<Label>, amount: u64) {
    check(metric, &labels);
    metrics::counter!(metric.name, labels).increment(amount);
}

#[allow(clippy::cast_precision_loss, reason = "numbers of things and bytes are far below 2^52")]
pub(crate) fn set(metric: &Metric, labels: Vec<Label>, value: u64) {
    check(metric, &labels);
    metrics::gauge!(metric.name, labels).set(value as f64);
}

fn check(metric: &Metric, labels: &[Label]) {
    debug_assert!(
        labels.iter().map(Label::key).eq(metric.labels.iter().map(|(name, _)| *name)),
        "{}",
        metric.name
    );
}
