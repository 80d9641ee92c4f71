//! RPC with envd inside a sandbox: generated clients over the shared pool, with the sandbox's address and token.
//! Where a broken stream means that the sandbox is gone is told by asking, as the official SDKs do.
//! Everything generated stays behind this module and its users: the crate's interface has types of its own.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig as RpcConfig, ServiceTransport};
use connectrpc::{ConnectError, ErrorCode};
use envd_api::filesystem::FilesystemClient;
use envd_api::process::ProcessClient;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;

use crate::config::ENVD_PORT;
use crate::rest::secret;
use crate::transport::{self, Transport};
use crate::{Error, Result};

type Rpc = ServiceTransport<legacy::Client<HttpsConnector<HttpConnector>, connectrpc::client::ClientBody>>;

/// Most bytes of one message: a listing of a large tree is one.
const MAX_MESSAGE: usize = 64 << 20;
/// Seconds between signs of life on a silent stream.
const KEEPALIVE: &str = "50";
/// How long a sandbox may take to say whether it lives.
const PROBE: Duration = Duration::from_secs(5);

/// envd of one sandbox.
#[derive(Clone)]
pub(crate) struct Envd {
    pub(crate) transport: Transport,
    pub(crate) base: Uri,
    /// Sandbox, port and token, on every request.
    pub(crate) headers: HeaderMap,
    pub(crate) process: ProcessClient<Rpc>,
    pub(crate) filesystem: FilesystemClient<Rpc>,
}

impl std::fmt::Debug for Envd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Envd").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Envd {
    pub(crate) fn new(transport: Transport, base: Uri, id: &str, token: Option<&str>) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(transport::USER_AGENT));
        let id = HeaderValue::from_str(id).map_err(|_| Error::NotFound("that is no sandbox id".into()))?;
        headers.insert(HeaderName::from_static("e2b-sandbox-id"), id);
        headers.insert(HeaderName::from_static("e2b-sandbox-port"), ENVD_PORT.into());
        if let Some(token) = secret("access token", token)? {
            headers.insert(HeaderName::from_static("x-access-token"), token);
        }
        let config = RpcConfig::new(base.clone())
            .with_default_headers(headers.clone())
            .with_default_max_message_size(MAX_MESSAGE);
        Ok(Self {
            process: ProcessClient::new(transport.for_rpc(), config.clone()),
            filesystem: FilesystemClient::new(transport.for_rpc(), config),
            transport,
            base,
            headers,
        })
    }

    /// Options of a call that answers at once.
    pub(crate) fn unary(&self, user: Option<&str>) -> CallOptions {
        as_user(CallOptions::default().with_timeout(self.transport.timeout()), user)
    }

    /// Options of a call that answers for as long as it likes, or for `limit`.
    pub(crate) fn stream(&self, user: Option<&str>, limit: Option<Duration>) -> CallOptions {
        let options = CallOptions::default().with_header("keepalive-ping-interval", KEEPALIVE);
        let options = match limit {
            Some(limit) => options.with_timeout(limit),
            None => options,
        };
        as_user(options, user)
    }

    /// Whether envd answers.
    pub(crate) async fn is_running(&self) -> Result<bool> {
        let mut request = Request::get(transport::join(&self.base, "/health")?)
            .body(transport::empty_body())
            .expect("address and method are valid");
        request.headers_mut().extend(self.headers.clone());
        let answer = self.transport.exchange(request).await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::BAD_GATEWAY => Ok(false),
            status => Err(Error::from_status(status, transport::error_message(answer.body()))),
        }
    }

    /// What an RPC's failure means.
    pub(crate) async fn explain(&self, error: ConnectError) -> Error {
        // Sent by envd as these, or made up by the transport when something broke: only a question tells.
        let broken = matches!(error.code, ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::Unknown);
        if broken && matches!(tokio::time::timeout(PROBE, self.is_running()).await, Ok(Ok(false))) {
            return Error::SandboxEnded;
        }
        if error.code == ErrorCode::Unavailable
            && let Some(cause) = std::error::Error::source(&error)
        {
            return transport::unreachable(transport::address(&self.base), cause);
        }
        Error::from_rpc(&error)
    }

    /// An answer of envd's REST part that is no success.
    pub(crate) fn refused(status: StatusCode, body: &Bytes) -> Error {
        match status {
            StatusCode::BAD_GATEWAY => Error::SandboxEnded,
            status => Error::from_status(status, transport::error_message(body)),
        }
    }
}

fn as_user(options: CallOptions, user: Option<&str>) -> CallOptions {
    match user {
        Some(user) => {
            options.with_header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{user}:"))))
        }
        None => options,
    }
}
