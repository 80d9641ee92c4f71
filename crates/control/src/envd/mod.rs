//! Talk with envd, the agent that is PID 1 in every sandbox: `POST /init` and `GET /metrics`; for template builds also
//! commands (`process`) and uploads (`files`). Plain HTTP/1.1 over a stream the engine dials; nothing it answers is trusted beyond its status.
//! Protocol: envd REST, version 0.6.13.

mod files;
mod process;

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

pub(crate) use files::upload;
pub(crate) use process::{Command, End, Output, run};

/// Port of envd in every sandbox.
pub const ENVD_PORT: u16 = 49983;
/// Most bytes of an answer that are looked at.
const MAX_ANSWER: usize = 64 * 1024;

/// The body of `POST /init`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Init<'a> {
    pub(crate) access_token: &'a str,
    /// Absent leaves them as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env_vars: Option<&'a BTreeMap<String, String>>,
    /// RFC 3339; envd sets its clock by it.
    pub(crate) timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_workdir: Option<&'a str>,
    // Ours: what upstream's envd finds in its metadata service.
    #[serde(rename = "sandboxID")]
    pub(crate) sandbox_id: &'a str,
    #[serde(rename = "templateID")]
    pub(crate) template_id: &'a str,
    #[serde(rename = "teamID")]
    pub(crate) team_id: String,
    // Ours too: on a shared kernel the agent sees the host's processors and memory.
    pub(crate) cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub(crate) memory_mib: u32,
    /// Authorities to trust, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<&'a str>,
    /// Fresh randomness, hex, for an agent that was copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<String>,
}

/// Says that the agent has taken the seed.
const RESEEDED: &str = "x-envd-reseeded";

/// What envd says about its machine. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct EnvdMetrics {
    /// Used since it was last asked, percent of all processors.
    pub(crate) cpu_used_pct: f32,
    /// Memory there is.
    pub(crate) mem_total: u64,
    /// Memory in use.
    pub(crate) mem_used: u64,
    /// Page cache.
    pub(crate) mem_cache: u64,
    /// Disk in use.
    pub(crate) disk_used: u64,
    /// Disk there is.
    pub(crate) disk_total: u64,
}

/// Why envd did not do as told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvdError {
    #[error("the agent cannot be reached: {0}")]
    Dial(#[from] std::io::Error),
    #[error("the agent broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent answered {0}")]
    Status(StatusCode),
    #[error("the agent did not confirm its fresh randomness")]
    NotReseeded,
    #[error("the agent's answer makes no sense")]
    Answer,
    /// As users of template builds know it: `unauthenticated: invalid username: 'x'`.
    #[error("{code}: {message}")]
    Refused { code: String, message: String },
}

/// Makes a sandbox its own: token, environment, clock, defaults. `authority` is the token its agent knows, if it knows one.
pub(crate) async fn init(
    sandbox: &dyn engine::Sandbox,
    authority: &str,
    init: &Init<'_>,
) -> Result<(), EnvdError> {
    let body = serde_json::to_vec(init).expect("strings and string maps serialise");
    let answer = call(sandbox, Method::POST, "/init", authority, body).await?;
    if answer.status() != StatusCode::NO_CONTENT {
        return Err(EnvdError::Status(answer.status()));
    }
    if init.seed.is_some() && !answer.headers().contains_key(RESEEDED) {
        return Err(EnvdError::NotReseeded);
    }
    Ok(())
}

/// Whether it answers at all.
pub(crate) async fn health(sandbox: &dyn engine::Sandbox) -> Result<(), EnvdError> {
    let answer = call(sandbox, Method::GET, "/health", "", Vec::new()).await?;
    if answer.status().is_success() { Ok(()) } else { Err(EnvdError::Status(answer.status())) }
}

/// Asks what the sandbox uses.
pub(crate) async fn metrics(sandbox: &dyn engine::Sandbox, token: &str) -> Result<EnvdMetrics, EnvdError> {
    let answer = call(sandbox, Method::GET, "/metrics", token, Vec::new()).await?;
    if answer.status() != StatusCode::OK {
        return Err(EnvdError::Status(answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|_| EnvdError::Answer)
}

/// Asks for an answer without an end and hands its body on.
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
    converse(sandbox, request, async |response| match response.status() {
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
        .header("x-access-token", token)
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| EnvdError::Answer)
}

async fn call(
    sandbox: &dyn engine::Sandbox,
    method: Method,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<http::Response<Bytes>, EnvdError> {
    converse(sandbox, request(method, path, token, body)?, whole).await
}

/// Reads a short answer to its end.
async fn whole(response: http::Response<Incoming>) -> Result<http::Response<Bytes>, EnvdError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|_| EnvdError::Answer)?.to_bytes();
    Ok(http::Response::from_parts(head, body))
}

/// One request on a connection of its own. The connection is driven here and not in a task: it ends with this call,
/// however that ends.
async fn converse<B, T>(
    sandbox: &dyn engine::Sandbox,
    request: Request<B>,
    read: impl AsyncFnOnce(http::Response<Incoming>) -> Result<T, EnvdError>,
) -> Result<T, EnvdError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = sandbox.dial(ENVD_PORT).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async { read(sender.send_request(request).await?).await };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => return answer,
        broken = &mut connection => broken?,
    }
    exchange.await
}
