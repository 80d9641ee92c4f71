//! Delivers one event: resolves the name, checks the address, connects, posts, and checks the status. Connections are not reused.
//! The body of the response is not read: any 2xx status is success. The whole delivery has one time limit.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use net::Cidr;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::target::{Target, TargetError, permit};

const USER_AGENT: &str = concat!("cofferdam-webhook/", env!("CARGO_PKG_VERSION"));

/// Why a delivery failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The URL or its address is not permitted.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The host name cannot be resolved.
    #[error("{0} cannot be resolved")]
    Resolve(String),
    /// The connection failed, or the receiver's certificate is not trusted.
    #[error("failed to connect: {0}")]
    Connect(#[from] std::io::Error),
    /// The HTTP exchange failed.
    #[error("the HTTP exchange failed: {0}")]
    Http(#[from] hyper::Error),
    /// A header is not valid.
    #[error("invalid header: {0}")]
    Header(#[from] http::Error),
    /// The receiver did not accept it.
    #[error("the receiver answered {0}")]
    Refused(StatusCode),
    /// The delivery exceeded its time limit.
    #[error("the receiver did not answer in time")]
    Timeout,
}

/// What is posted.
#[derive(Debug, Clone)]
pub struct WebhookPayload {
    /// The body, JSON.
    pub body: Bytes,
    /// Headers besides those of every delivery.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Delivers events. Clones share the configuration.
#[derive(Debug, Clone)]
pub struct WebhookClient {
    tls: Arc<rustls::ClientConfig>,
    allowed: Arc<[Cidr]>,
    timeout: Duration,
}

impl WebhookClient {
    /// Creates a client that trusts the system's certificate authorities, connects to public addresses and `allowed` networks, and
    /// takes at most `timeout` for a delivery. Blocks for some milliseconds to read the certificates.
    #[must_use]
    pub fn new(allowed: Vec<Cidr>, timeout: Duration) -> Self {
        Self { tls: Arc::new(tls_roots::client_config()), allowed: allowed.into(), timeout }
    }

    /// Parses and checks a URL.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn check(&self, url: &str) -> Result<Target, TargetError> {
        Target::parse(url, &self.allowed)
    }

    /// Posts a payload to the target; returns the status of the response.
    ///
    /// # Errors
    /// The receiver did not answer with a 2xx status within the time limit.
    pub async fn deliver(
        &self,
        target: &Target,
        payload: WebhookPayload,
    ) -> Result<StatusCode, DeliveryError> {
        let status = tokio::time::timeout(self.timeout, self.post(target, payload)).await;
        let status = status.map_err(|_| DeliveryError::Timeout)??;
        if status.is_success() { Ok(status) } else { Err(DeliveryError::Refused(status)) }
    }

    async fn post(&self, target: &Target, payload: WebhookPayload) -> Result<StatusCode, DeliveryError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(target.path.as_str())
            .header(header::HOST, target.authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        for (name, value) in payload.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(payload.body))?;
        let stream = self.connect(target).await?;
        if !target.tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| TargetError::Malformed("its host cannot have a certificate"))?;
        exchange(TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?, request).await
    }

    /// Connects to the first permitted address that accepts the connection.
    async fn connect(&self, target: &Target) -> Result<TcpStream, DeliveryError> {
        let addresses: Vec<IpAddr> = match target.host.parse() {
            Ok(address) => vec![address],
            Err(_) => tokio::net::lookup_host((target.host.as_str(), target.port))
                .await
                .map_err(|_| DeliveryError::Resolve(target.host.clone()))?
                .map(|address| address.ip())
                .collect(),
        };
        let mut failure = DeliveryError::Resolve(target.host.clone());
        for address in addresses {
            if let Err(error) = permit(address, &self.allowed) {
                failure = error.into();
                continue;
            }
            match TcpStream::connect(SocketAddr::new(address, target.port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, DeliveryError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Driven here instead of in a task, so that the connection ends with this call.
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => Ok(answer?.status()),
        broken = &mut connection => {
            broken?;
            Ok(answer.await?.status())
        }
    }
}
