//! What the server reports about itself: the log, traces for an OpenTelemetry collector, and the sources of metrics.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{METRICS_MEDIA_TYPE, MetricsSource};
use async_trait::async_trait;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use control::Control;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use telemetry::Exporter;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tracing::warn;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::ServeArguments;
use crate::budgets::Budgets;
use crate::failure::Failure;

/// How often observed durations are moved into the buckets of their histograms.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum time for one request to the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Path of a collector for traces, where the URL of `--otlp` has none.
const TRACES_PATH: &str = "/v1/traces";

/// The crates whose spans are exported: those of other libraries are not.
const TRACED_CRATES: [&str; 5] = ["api", "edge", "control", "builds", "cofferdam"];

/// Sends the remaining spans when it is dropped.
#[derive(Debug)]
pub(super) struct TraceExport(Option<SdkTracerProvider>);

impl Drop for TraceExport {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take()
            && let Err(error) = provider.shutdown()
        {
            warn!(%error, "failed to export the last traces");
        }
    }
}

/// Starts the log, and the export of traces if `--otlp` is given. Must be called in the runtime, which the export uses.
///
/// # Errors
/// `--log` or `--otlp` cannot be parsed.
pub(super) fn start(arguments: &ServeArguments) -> Result<(TraceExport, LogLevels), Failure> {
    let (filter, levels) = reload::Layer::new(log_filter(&arguments.log)?);
    let Some(url) = &arguments.otlp else {
        Registry::default().with(filter).with(log_layer(arguments.log_json)).init();
        return Ok((TraceExport(None), levels));
    };
    let provider = trace_provider(url)?;
    let tracer = provider.tracer("cofferdam");
    let traced = Targets::new().with_targets(TRACED_CRATES.map(|name| (name, tracing::Level::INFO)));
    let traces = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_filter(traced);
    // Each layer has a filter of its own, so that `--log warn` does not drop the spans.
    Registry::default().with(log_layer(arguments.log_json).with_filter(filter)).with(traces).init();
    Ok((TraceExport(Some(provider)), levels))
}

/// Which log lines are written; can be changed.
pub(super) type LogLevels = reload::Handle<EnvFilter, Registry>;

/// Parses the value of `--log`.
///
/// # Errors
/// It is no filter.
pub(super) fn log_filter(text: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(text).map_err(|error| Failure::new(format!("--log {text}: {error}")))
}

fn log_layer<S>(json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if json { layer.json().boxed() } else { layer.with_ansi(std::io::stderr().is_terminal()).boxed() }
}

fn trace_provider(url: &str) -> Result<SdkTracerProvider, Failure> {
    let endpoint = traces_endpoint(url).map_err(|reason| Failure::new(format!("--otlp {url}: {reason}")))?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(RuntimeClient::new())
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder().with_service_name("cofferdam").build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// Returns the URL that traces are posted to.
fn traces_endpoint(url: &str) -> Result<String, String> {
    let uri: axum::http::Uri = url.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(
            "write it as http://HOST:PORT; run a collector on this host to reach others with TLS".into()
        );
    }
    let url = url.trim_end_matches('/');
    Ok(if uri.path() == "/" { format!("{url}{TRACES_PATH}") } else { url.to_owned() })
}

/// An HTTP client whose requests run in the server's runtime: the exporter calls it from a thread that has none.
#[derive(Debug)]
struct RuntimeClient {
    runtime: Handle,
    client: Arc<HyperClient>,
}

impl RuntimeClient {
    fn new() -> Self {
        let client = HyperClient::with_default_connector(EXPORT_TIMEOUT, None);
        Self { runtime: Handle::current(), client: Arc::new(client) }
    }
}

#[async_trait]
impl HttpClient for RuntimeClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = Arc::clone(&self.client);
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Returns the source of `/metrics`.
pub(super) fn metrics_source(exporter: Exporter, control: Arc<Control>, budgets: Budgets) -> MetricsSource {
    MetricsSource(Arc::new(move || {
        telemetry::set_sandbox_counts(control.sandbox_counts());
        for budget in budgets.all() {
            telemetry::set_budget(budget.resource(), budget.taken(), budget.total());
        }
        exporter.render()
    }))
}

/// Moves observed durations into their buckets for as long as the server runs.
pub(super) async fn fold_histograms(exporter: Exporter) {
    let mut interval = tokio::time::interval(FOLD_INTERVAL);
    loop {
        interval.tick().await;
        exporter.fold();
    }
}

/// Listens for scrapes without a token, and serves them in a task.
///
/// # Errors
/// The address cannot be listened on.
pub(super) async fn listen_for_scrapes(
    address: SocketAddr,
    source: MetricsSource,
) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::new(format!(
            "cannot listen on {address}: {error}; choose another address with --metrics-listen"
        ))
    })?;
    let local = listener.local_addr()?;
    let scrape = async move || {
        let text = tokio::task::spawn_blocking(move || (source.0)()).await.unwrap_or_default();
        ([(header::CONTENT_TYPE, METRICS_MEDIA_TYPE)], text)
    };
    let router = Router::new().route("/metrics", get(scrape));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(local)
}

#[cfg(test)]
mod tests {
    use super::traces_endpoint;

    #[test]
    fn traces_go_to_the_standard_path_unless_another_is_given() {
        let endpoint = |url: &str| traces_endpoint(url).unwrap();
        assert_eq!(endpoint("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(endpoint("http://collector:4318/"), "http://collector:4318/v1/traces");
        assert_eq!(endpoint("http://collector/custom/traces"), "http://collector/custom/traces");
        for bad in ["https://collector:4318", "collector:4318", "/v1/traces", ""] {
            assert!(traces_endpoint(bad).is_err(), "{bad}");
        }
    }
}
