//! Requests the sandbox's environment from envd, for every run, so that a copy of a sandbox uses its own.
//! The request carries the client's token: a client that envd refuses may not run code either.
//! Without any envd there is no token either, and code runs with the variables that are known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envd_api::{headers, paths};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Time limit of the request. envd is in the same sandbox and responds at once.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 16 << 20;

/// Variables by name.
pub(crate) type Env = BTreeMap<String, String>;

/// envd's response.
#[derive(Debug)]
pub(crate) enum EnvResponse {
    Env(Env),
    /// The token is wrong or missing.
    Refused,
    /// envd exists but failed. The client is refused, since its token is not checked.
    Unavailable,
    /// There is no envd.
    Absent,
}

/// Requests the environment with the client's token.
pub(crate) async fn env(address: SocketAddr, token: Option<&http::HeaderValue>) -> EnvResponse {
    match tokio::time::timeout(TIMEOUT, ask(address, token)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::warn!(%error, "failed to request the environment from envd");
            EnvResponse::Unavailable
        }
        Err(_) => {
            tracing::warn!("envd did not respond in time");
            EnvResponse::Unavailable
        }
    }
}

async fn ask(
    address: SocketAddr,
    token: Option<&http::HeaderValue>,
) -> Result<EnvResponse, Box<dyn std::error::Error + Send + Sync>> {
    let stream = match TcpStream::connect(address).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Ok(EnvResponse::Absent);
        }
        connected => connected?,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request =
        http::Request::get(paths::ENVS).header("host", address.to_string()).header("connection", "close");
    if let Some(token) = token {
        request = request.header(headers::ACCESS_TOKEN, token);
    }
    let exchange = async {
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = response.status();
        if status == http::StatusCode::UNAUTHORIZED || status == http::StatusCode::FORBIDDEN {
            return Ok(EnvResponse::Refused);
        }
        if !status.is_success() {
            return Err(format!("status {status}").into());
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await?.to_bytes();
        Ok(EnvResponse::Env(serde_json::from_slice(&body)?))
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}
