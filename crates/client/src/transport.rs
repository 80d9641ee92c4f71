//! The HTTP connection pool, and helpers for requests and responses.
//! HTTP/1.1, or HTTP/2 where TLS negotiates it. Certificates are checked against the system's roots.

use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::{ClientBody, ServiceTransport, full_body};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use crate::{ClientConfig, Error, Result};

/// Maximum size of a response that is read whole, unless it is a file.
const MAX_RESPONSE: usize = 16 << 20;

pub(crate) const USER_AGENT: &str = concat!("cofferdam-rust-sdk/", env!("CARGO_PKG_VERSION"));

type Pool = legacy::Client<HttpsConnector<HttpConnector>, ClientBody>;

/// The connection pool; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pool: Pool,
    /// Time limit of small requests.
    timeout: Duration,
}

impl Transport {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config))
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let pool = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { pool, timeout: config.request_timeout })
    }

    /// Returns the pool as a transport of the RPC clients.
    pub(crate) fn for_rpc(&self) -> ServiceTransport<Pool> {
        ServiceTransport::new(self.pool.clone())
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a request and waits for the head of its response, without a time limit.
    pub(crate) async fn send(&self, request: Request<ClientBody>) -> Result<Response<Incoming>> {
        let address = address(request.uri());
        self.pool.request(request).await.map_err(|error| unreachable(address, &error))
    }

    /// Sends a small request and reads its whole response within the time limit.
    pub(crate) async fn exchange(&self, request: Request<ClientBody>) -> Result<Response<Bytes>> {
        let address = address(request.uri());
        let limit = self.timeout;
        let exchange = async {
            let (head, body) = self.send(request).await?.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await;
            let body = body.map_err(|error| unreachable(address.clone(), error.as_ref()))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(Error::Timeout(format!("no response from {address} within {} s", limit.as_secs_f32())))
            }
        }
    }
}

/// Makes the TLS configuration. Without TLS it has no certificate authorities: reading them takes some milliseconds.
fn tls(config: &ClientConfig) -> rustls::ClientConfig {
    if config.is_plaintext() { tls_roots::client_config_without_roots() } else { tls_roots::client_config() }
}

pub(crate) fn json_body(value: &impl serde::Serialize) -> ClientBody {
    full_body(serde_json::to_vec(value).expect("our own types serialize").into())
}

pub(crate) fn empty_body() -> ClientBody {
    full_body(Bytes::new())
}

/// Parses a JSON response, or returns the error in it.
pub(crate) fn read_json<T: DeserializeOwned>(response: &Response<Bytes>) -> Result<T> {
    check(response)?;
    serde_json::from_slice(response.body()).map_err(|error| Error::Protocol(error.to_string()))
}

/// Returns the error in a response, if it is one.
pub(crate) fn check(response: &Response<Bytes>) -> Result<()> {
    if response.status().is_success() {
        return Ok(());
    }
    Err(Error::from_status(response.status(), error_message(response.body())))
}

/// Returns the `message` of an error body, or the beginning of the body if it is not such JSON.
pub(crate) fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        message: String,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => body.message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned(),
    }
}

/// Appends a path and query, which must be encoded already, to `base`.
pub(crate) fn join(base: &Uri, path_and_query: &str) -> Result<Uri> {
    let text = format!("{}{path_and_query}", base.to_string().trim_end_matches('/'));
    text.parse().map_err(|_| Error::Config(format!("{text:?} is not a URL")))
}

pub(crate) fn address(uri: &Uri) -> String {
    format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |a| a.as_str()))
}

/// Makes an error with the innermost cause, which is the most useful one ("Connection refused").
pub(crate) fn unreachable(address: String, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Error::Unreachable { address, message: cause.to_string() }
}
