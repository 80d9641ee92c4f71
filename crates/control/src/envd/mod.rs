//! Requests to envd, the daemon that is PID 1 in every sandbox: settings, health, metrics and logs; for template builds
//! also commands (`process`) and uploads (`files`). Each uses a connection of its own, opened by the engine.
//! What envd sends is untrusted: code in the sandbox may have replaced it.

mod files;
mod process;

use bytes::Bytes;
use connectrpc::{ConnectError, ErrorCode};
use envd_api::{InitRequest, headers, paths};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

pub(crate) use files::upload;
pub(crate) use process::{Command, End, Output, run};

/// Maximum size of a response body, bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// What a sandbox uses, as envd measures it. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct EnvdMetrics {
    /// Processor time used since the last request, percent of all processors.
    pub(crate) cpu_used_pct: f32,
    /// Memory of the sandbox.
    pub(crate) mem_total: u64,
    /// Memory in use.
    pub(crate) mem_used: u64,
    /// Page cache.
    pub(crate) mem_cache: u64,
    /// Disk in use.
    pub(crate) disk_used: u64,
    /// Size of the disk.
    pub(crate) disk_total: u64,
}

/// Why a request to envd failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvdError {
    #[error("envd cannot be reached: {0}")]
    Dial(#[from] std::io::Error),
    #[error("the connection to envd broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the stream from envd broke: {0}")]
    Stream(ConnectError),
    #[error("envd answered {0}")]
    Status(StatusCode),
    #[error("envd did not confirm that it reseeded the random generator")]
    NotReseeded,
    #[error("envd's response is malformed")]
    Response,
    /// As users of template builds know it: `unauthenticated: invalid username: 'x'`.
    #[error("{code}: {message}")]
    Refused { code: String, message: String },
}

impl From<ConnectError> for EnvdError {
    fn from(error: ConnectError) -> Self {
        match error.code {
            // The client itself reports broken connections and malformed messages by these.
            ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::Unknown => Self::Stream(error),
            code => {
                Self::Refused { code: code.as_str().to_owned(), message: error.message.unwrap_or_default() }
            }
        }
    }
}

/// Gives a sandbox its settings: token, environment, clock, defaults. `current_token` is the token that its envd
/// demands now, if it demands one.
///
/// # Errors
/// envd cannot be reached, refused the settings, or did not take the seed.
pub(crate) async fn init(
    sandbox: &dyn engine::Sandbox,
    current_token: &str,
    init: &InitRequest,
) -> Result<(), EnvdError> {
    let body = serde_json::to_vec(init).expect("strings and string maps serialise");
    let response = call(sandbox, Method::POST, paths::INIT, current_token, body).await?;
    if response.status() != StatusCode::NO_CONTENT {
        return Err(EnvdError::Status(response.status()));
    }
    if init.seed.is_some() && !response.headers().contains_key(headers::RESEEDED) {
        return Err(EnvdError::NotReseeded);
    }
    Ok(())
}

/// Checks that envd answers.
///
/// # Errors
/// It does not, or not with success.
pub(crate) async fn health(sandbox: &dyn engine::Sandbox) -> Result<(), EnvdError> {
    let response = call(sandbox, Method::GET, paths::HEALTH, "", Vec::new()).await?;
    if response.status().is_success() { Ok(()) } else { Err(EnvdError::Status(response.status())) }
}

/// Returns what the sandbox uses.
///
/// # Errors
/// envd cannot be reached, refused the token, or its response is malformed.
pub(crate) async fn metrics(sandbox: &dyn engine::Sandbox, token: &str) -> Result<EnvdMetrics, EnvdError> {
    let response = call(sandbox, Method::GET, paths::METRICS, token, Vec::new()).await?;
    if response.status() != StatusCode::OK {
        return Err(EnvdError::Status(response.status()));
    }
    serde_json::from_slice(response.body()).map_err(|_| EnvdError::Response)
}

/// Requests a response without an end and hands its body to `read`.
///
/// # Errors
/// envd cannot be reached or refused the request, and the errors of `read`.
pub(crate) async fn stream<F>(
    sandbox: &dyn engine::Sandbox,
    path: &str,
    token: &str,
    read: impl FnOnce(Incoming) -> F,
) -> Result<(), EnvdError>
where
    F: Future<Output = Result<(), EnvdError>>,
{
    let request = request(Method::GET, path, token, Vec::new())?;
    exchange(sandbox, request, async |response| match response.status() {
        StatusCode::OK => read(response.into_body()).await,
        status => Err(EnvdError::Status(status)),
    })
    .await
}

fn request(
    method: Method,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, EnvdError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(headers::ACCESS_TOKEN, token)
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| EnvdError::Response)
}

async fn call(
    sandbox: &dyn engine::Sandbox,
    method: Method,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<http::Response<Bytes>, EnvdError> {
    exchange(sandbox, request(method, path, token, body)?, whole).await
}

/// Reads a short response to its end.
async fn whole(response: http::Response<Incoming>) -> Result<http::Response<Bytes>, EnvdError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(|_| EnvdError::Response)?.to_bytes();
    Ok(http::Response::from_parts(head, body))
}

/// Sends one request on a connection of its own and hands the response to `read`.
async fn exchange<B, T>(
    sandbox: &dyn engine::Sandbox,
    request: Request<B>,
    read: impl AsyncFnOnce(http::Response<Incoming>) -> Result<T, EnvdError>,
) -> Result<T, EnvdError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    on_connection(sandbox, async |mut sender: SendRequest<B>| read(sender.send_request(request).await?).await)
        .await
}

/// Opens a connection to envd and runs `exchange` over it. The connection is driven here and not in a task, so it is
/// closed when this call ends or is dropped.
async fn on_connection<B, T>(
    sandbox: &dyn engine::Sandbox,
    exchange: impl AsyncFnOnce(SendRequest<B>) -> Result<T, EnvdError>,
) -> Result<T, EnvdError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = sandbox.dial(envd_api::PORT).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = exchange(sender);
    tokio::pin!(exchange, connection);
    tokio::select! {
        outcome = &mut exchange => return outcome,
        closed = &mut connection => closed?,
    }
    exchange.await
}
