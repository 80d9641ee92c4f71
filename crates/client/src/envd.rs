//! Requests to the envd of one sandbox: the generated RPC clients over the shared connection pool.
//! After a broken stream a health check tells whether the sandbox has ended, as in the official SDKs.
//! Generated types are not part of the crate's interface.

use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig as RpcConfig, ServiceTransport};
use connectrpc::{ConnectError, ErrorCode};
use envd_api::filesystem::FilesystemClient;
use envd_api::process::ProcessClient;
use envd_api::{headers, paths};
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;

use crate::rest::secret;
use crate::transport::{self, Transport};
use crate::{Error, Result};

type Rpc = ServiceTransport<legacy::Client<HttpsConnector<HttpConnector>, connectrpc::client::ClientBody>>;

/// Maximum size of one message, bytes: a listing of a large tree is one message.
const MAX_MESSAGE: usize = 64 << 20;
/// Interval of keepalive messages on a silent stream, seconds.
const KEEPALIVE: &str = "50";
/// Time limit of the health check after a broken stream.
const PROBE: Duration = Duration::from_secs(5);

/// The envd of one sandbox.
#[derive(Clone)]
pub(crate) struct Envd {
    pub(crate) transport: Transport,
    pub(crate) base: Uri,
    /// Headers of every request: sandbox, port and token.
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
        let mut all = HeaderMap::new();
        all.insert(USER_AGENT, HeaderValue::from_static(transport::USER_AGENT));
        let id = HeaderValue::from_str(id).map_err(|_| Error::NotFound("that is no sandbox id".into()))?;
        all.insert(HeaderName::from_static("e2b-sandbox-id"), id);
        all.insert(HeaderName::from_static("e2b-sandbox-port"), envd_api::PORT.into());
        if let Some(token) = secret("access token", token)? {
            all.insert(HeaderName::from_static(headers::ACCESS_TOKEN), token);
        }
        let config = RpcConfig::new(base.clone())
            .with_default_headers(all.clone())
            .with_default_max_message_size(MAX_MESSAGE);
        Ok(Self {
            process: ProcessClient::new(transport.for_rpc(), config.clone()),
            filesystem: FilesystemClient::new(transport.for_rpc(), config),
            transport,
            base,
            headers: all,
        })
    }

    /// Options of a unary call.
    pub(crate) fn unary(&self, user: Option<&str>) -> CallOptions {
        as_user(CallOptions::default().with_timeout(self.transport.timeout()), user)
    }

    /// Options of a streaming call with an optional time limit.
    pub(crate) fn stream(&self, user: Option<&str>, limit: Option<Duration>) -> CallOptions {
        let options = CallOptions::default().with_header("keepalive-ping-interval", KEEPALIVE);
        let options = match limit {
            Some(limit) => options.with_timeout(limit),
            None => options,
        };
        as_user(options, user)
    }

    /// Whether envd is up.
    pub(crate) async fn is_running(&self) -> Result<bool> {
        let mut request = Request::get(transport::join(&self.base, paths::HEALTH)?)
            .body(transport::empty_body())
            .expect("address and method are valid");
        request.headers_mut().extend(self.headers.clone());
        let response = self.transport.exchange(request).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::BAD_GATEWAY => Ok(false),
            status => Err(Error::from_status(status, transport::error_message(response.body()))),
        }
    }

    /// Maps the failure of an RPC. Asks the sandbox if the failure may mean that it has ended.
    pub(crate) async fn explain(&self, error: ConnectError) -> Error {
        // Sent by envd, or made by the transport when a connection broke: only a request tells.
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

    /// Maps an error response of envd's REST interface.
    pub(crate) fn refused(status: StatusCode, body: &Bytes) -> Error {
        match status {
            StatusCode::BAD_GATEWAY => Error::SandboxEnded,
            status => Error::from_status(status, transport::error_message(body)),
        }
    }
}

fn as_user(options: CallOptions, user: Option<&str>) -> CallOptions {
    match user {
        Some(user) => options.with_header(AUTHORIZATION, headers::user_authorization(user)),
        None => options,
    }
}
