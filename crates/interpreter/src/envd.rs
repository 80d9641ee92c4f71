//! Asks envd for the sandbox's environment, on every run, so that a copy of a sandbox has its own.
//! The caller's token goes along: who may not ask envd may not run code either.
//! Where no envd listens at all, there is no token either, and code runs with the variables that were known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envd_api::{headers, paths};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// envd is on the same machine; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const LARGEST: usize = 16 << 20;

/// Variables by name.
pub(crate) type Env = BTreeMap<String, String>;

/// What envd said.
#[derive(Debug)]
pub(crate) enum Answer {
    Env(Env),
    /// The token is wrong, or missing where there is one.
    Refused,
    /// It is there and does not say: nobody is let in on a guess.
    Unavailable,
    /// There is none.
    Absent,
}

/// Fetches the environment with the caller's token.
pub(crate) async fn env(address: SocketAddr, token: Option<&http::HeaderValue>) -> Answer {
    match tokio::time::timeout(PATIENCE, ask(address, token)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::warn!("envd: {error}");
            Answer::Unavailable
        }
        Err(_) => {
            tracing::warn!("envd does not answer");
            Answer::Unavailable
        }
    }
}

async fn ask(
    address: SocketAddr,
    token: Option<&http::HeaderValue>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = match TcpStream::connect(address).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(Answer::Absent),
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
            return Ok(Answer::Refused);
        }
        if !status.is_success() {
            return Err(format!("it answers {status}").into());
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await?.to_bytes();
        Ok(Answer::Env(serde_json::from_slice(&body)?))
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}
