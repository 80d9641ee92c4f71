//! The first words with envd, the agent that is PID 1 in every sandbox: `POST /init` and `GET /metrics`.
//! Plain HTTP/1.1 over a stream the engine dials; nothing it answers is trusted beyond its status.
//! Protocol: envd REST, version 0.6.13.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

/// Port of envd in every sandbox.
pub const ENVD_PORT: u16 = 49983;
/// Most bytes of an answer that are looked at.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The body of `POST /init`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Init<'a> {
    pub(crate) access_token: &'a str,
    pub(crate) env_vars: &'a BTreeMap<String, String>,
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
}

/// What envd says about its machine. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AgentMetrics {
    /// Unix time, seconds.
    pub ts: i64,
    /// Processors.
    pub cpu_count: u32,
    /// Used since it was last asked, percent of one processor times their number.
    pub cpu_used_pct: f32,
    /// Memory there is.
    pub mem_total: u64,
    /// Memory in use.
    pub mem_used: u64,
    /// Page cache.
    pub mem_cache: u64,
    /// Disk in use.
    pub disk_used: u64,
    /// Disk there is.
    pub disk_total: u64,
}

/// Why envd did not do as told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("the agent cannot be reached: {0}")]
    Dial(#[from] std::io::Error),
    #[error("the agent broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent answered {0}")]
    Status(StatusCode),
    #[error("the agent's answer makes no sense")]
    Answer,
}

/// Makes a fresh sandbox its own: token, environment, clock, defaults.
pub(crate) async fn init(sandbox: &dyn engine::Sandbox, init: &Init<'_>) -> Result<(), AgentError> {
    let body = serde_json::to_vec(init).expect("strings and string maps serialise");
    let (status, _) = call(sandbox, Method::POST, "/init", init.access_token, body).await?;
    if status == StatusCode::NO_CONTENT { Ok(()) } else { Err(AgentError::Status(status)) }
}

/// Asks what the sandbox uses.
pub(crate) async fn metrics(sandbox: &dyn engine::Sandbox, token: &str) -> Result<AgentMetrics, AgentError> {
    let (status, body) = call(sandbox, Method::GET, "/metrics", token, Vec::new()).await?;
    if status != StatusCode::OK {
        return Err(AgentError::Status(status));
    }
    serde_json::from_slice(&body).map_err(|_| AgentError::Answer)
}

/// Asks for an answer without an end and hands its body on.
pub(crate) async fn stream<F>(
    sandbox: &dyn engine::Sandbox,
    path: &str,
    token: &str,
    read: impl FnOnce(Incoming) -> F,
) -> Result<(), AgentError>
where
    F: Future<Output = Result<(), AgentError>>,
{
    let stream = sandbox.dial(ENVD_PORT).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = request(Method::GET, path, token, Vec::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => read(response.into_body()).await,
            status => Err(AgentError::Status(status)),
        }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => return answer,
        broken = connection => broken?,
    }
    exchange.await
}

fn request(
    method: Method,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, AgentError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-access-token", token)
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| AgentError::Answer)
}

async fn call(
    sandbox: &dyn engine::Sandbox,
    method: Method,
    path: &str,
    token: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), AgentError> {
    let stream = sandbox.dial(ENVD_PORT).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = request(method, path, token, body)?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await
            .map_err(|_| AgentError::Answer)?
            .to_bytes();
        Ok((status, body))
    };
    // The connection is driven here and not in a task: it ends with this call, however that ends.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => return answer,
        broken = &mut connection => broken?,
    }
    exchange.await
}
