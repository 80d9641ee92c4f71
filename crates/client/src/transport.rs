//! The connection pool and what every request over it has in common.
//! HTTP/1.1, or HTTP/2 where TLS offers it; cryptography is ring's, roots are the system's.
//! A broken connection and a refused one are the same error, which names the address.

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

/// Largest answer that is held in memory whole, unless it is a file.
const MAX_ANSWER: usize = 16 << 20;

pub(crate) const USER_AGENT: &str = concat!("cofferdam-rust-sdk/", env!("CARGO_PKG_VERSION"));

type Pool = legacy::Client<HttpsConnector<HttpConnector>, ClientBody>;

/// The pool; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pool: Pool,
    /// Longest wait for an answer.
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

    /// The same pool for RPC.
    pub(crate) fn for_rpc(&self) -> ServiceTransport<Pool> {
        ServiceTransport::new(self.pool.clone())
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a request and waits for the head of its answer, as long as it takes.
    pub(crate) async fn send(&self, request: Request<ClientBody>) -> Result<Response<Incoming>> {
        let address = address(request.uri());
        self.pool.request(request).await.map_err(|error| unreachable(address, &error))
    }

    /// Sends a small request and reads its whole answer, both within the time limit.
    pub(crate) async fn exchange(&self, request: Request<ClientBody>) -> Result<Response<Bytes>> {
        let address = address(request.uri());
        let limit = self.timeout;
        let exchange = async {
            let (head, body) = self.send(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|error| unreachable(address.clone(), error.as_ref()))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(Error::Timeout(format!("no answer from {address} within {} s", limit.as_secs_f32())))
            }
        }
    }
}

/// A configuration without certificate authorities where the server is reached in plaintext: reading them takes some milliseconds.
fn tls(config: &ClientConfig) -> rustls::ClientConfig {
    if config.is_plaintext() { tls_roots::client_config_without_roots() } else { tls_roots::client_config() }
}

pub(crate) fn json_body(value: &impl serde::Serialize) -> ClientBody {
    full_body(serde_json::to_vec(value).expect("our own types serialize").into())
}

pub(crate) fn empty_body() -> ClientBody {
    full_body(Bytes::new())
}

/// A JSON answer, or the error it holds.
pub(crate) fn read_json<T: DeserializeOwned>(response: &Response<Bytes>) -> Result<T> {
    check(response)?;
    serde_json::from_slice(response.body()).map_err(|error| Error::Protocol(error.to_string()))
}

/// The error an answer holds, if it is one.
pub(crate) fn check(response: &Response<Bytes>) -> Result<()> {
    if response.status().is_success() {
        return Ok(());
    }
    Err(Error::from_status(response.status(), error_message(response.body())))
}

/// The `message` of an error body, or the body itself where it is something else.
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

/// `base` with a path and query, which must be encoded already.
pub(crate) fn join(base: &Uri, path_and_query: &str) -> Result<Uri> {
    let text = format!("{}{path_and_query}", base.to_string().trim_end_matches('/'));
    text.parse().map_err(|_| Error::Config(format!("{text:?} is not a URL")))
}

pub(crate) fn address(uri: &Uri) -> String {
    format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |a| a.as_str()))
}

/// The innermost cause is what a person can act on ("Connection refused").
pub(crate) fn unreachable(address: String, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Error::Unreachable { address, message: cause.to_string() }
}
