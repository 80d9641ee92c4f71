//! Keeps the values of all metrics and writes them as text for Prometheus.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::{METRICS, MetricKind, process};

/// Why metrics cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A process has one exporter at most.
    #[error("metrics are exported already")]
    Installed,
    /// A histogram has no buckets.
    #[error("metric {0}: its buckets are not valid")]
    Buckets(&'static str),
}

/// The values of all metrics.
#[derive(Clone)]
pub struct Exporter(PrometheusHandle);

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// From now on keeps what this process records.
    ///
    /// # Errors
    /// The process has an exporter already.
    pub fn install() -> Result<Self, TelemetryError> {
        let (recorder, exporter) = Self::new()?;
        metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Installed)?;
        describe();
        Ok(exporter)
    }

    fn new() -> Result<(PrometheusRecorder, Self), TelemetryError> {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Histogram) {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)
                .map_err(|_| TelemetryError::Buckets(metric.name))?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Ok((recorder, Self(handle)))
    }

    /// Returns all metrics in Prometheus's text format, those of the process read at this moment.
    #[must_use]
    pub fn render(&self) -> String {
        process::update();
        self.0.render()
    }

    /// Moves observed durations into their buckets. To be called every few seconds: they use memory until then or until
    /// [`Exporter::render`].
    pub fn fold(&self) {
        self.0.run_upkeep();
    }
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::{
        CaptureKind, CreatePath, Outcome, ResumePath, SandboxCounts, build_timer, capture_timer,
        create_timer, edge_request_finished, exec_answered, http_request_finished, pool_claimed,
        resume_timer, set_budget, set_disk, set_sandbox_counts, store_operation_finished, sweep_finished,
    };

    /// Calls every recording function.
    fn record_everything() {
        let took = Duration::from_millis(3);
        http_request_finished("GET", "/sandboxes/{sandboxID}", 200, took);
        edge_request_finished(true, 200);
        exec_answered(Outcome::Ok, took);
        drop(create_timer());
        let mut create = create_timer();
        create.set_path(CreatePath::Pool);
        create.succeeded();
        pool_claimed(true);
        set_sandbox_counts(SandboxCounts { running: 2, paused: 1, prestarted: 3 });
        set_budget("client connections", 1, 2);
        set_disk(1, 2);
        capture_timer(CaptureKind::Pause).succeeded();
        let mut resume = resume_timer();
        resume.set_path(ResumePath::Frozen);
        drop(resume);
        build_timer().succeeded();
        store_operation_finished("teams", Outcome::Ok, took);
        sweep_finished(4);
    }

    fn rendered() -> String {
        let (recorder, exporter) = Exporter::new().unwrap();
        metrics::with_local_recorder(&recorder, || {
            describe();
            record_everything();
            exporter.render()
        })
    }

    #[test]
    fn what_is_defined_is_emitted_and_nothing_else() {
        let text = rendered();
        let emitted: BTreeSet<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let defined: BTreeSet<(&str, &str)> =
            METRICS.iter().map(|metric| (metric.name, metric.kind.name())).collect();
        assert_eq!(emitted, defined);
        assert_eq!(defined.len(), METRICS.len(), "a name is used twice");
    }

    #[test]
    fn series_have_labels_values_and_help() {
        let text = rendered();
        for line in [
            "# HELP cofferdam_pool_claims_total Creates that asked the pool for a pre-started sandbox of their template.",
            r#"cofferdam_pool_claims_total{result="hit"} 1"#,
            r#"cofferdam_sandboxes{state="paused"} 1"#,
            "cofferdam_sweeper_findings_total 4",
            r#"cofferdam_exec_duration_seconds_bucket{outcome="ok",le="0.0025"} 0"#,
            r#"cofferdam_exec_duration_seconds_bucket{outcome="ok",le="0.005"} 1"#,
            r#"cofferdam_sandbox_create_duration_seconds_count{path="pool",outcome="ok"} 1"#,
            r#"cofferdam_sandbox_create_duration_seconds_count{path="none",outcome="refused"} 1"#,
            r#"cofferdam_resume_duration_seconds_count{path="frozen",outcome="error"} 1"#,
            r#"cofferdam_http_request_duration_seconds_count{method="GET",route="/sandboxes/{sandboxID}",status="200"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn histograms_have_ascending_buckets() {
        for metric in METRICS {
            assert_eq!(metric.kind == MetricKind::Histogram, !metric.buckets.is_empty(), "{}", metric.name);
            assert!(metric.buckets.is_sorted(), "{}", metric.name);
        }
    }
}
