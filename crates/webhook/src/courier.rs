//! One delivery: resolve, check, connect, post, look at the status. A connection serves once.
//! The receiver's body is not read: only its status counts, and any 2xx is an acceptance.
//! All of it together has one time limit.

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

/// Why a delivery did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// It must not go there.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The name leads nowhere.
    #[error("{0} cannot be resolved")]
    Resolve(String),
    /// Nobody listens, or what listens speaks no TLS that is trusted.
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    /// The receiver speaks no HTTP.
    #[error("the exchange broke off: {0}")]
    Http(#[from] hyper::Error),
    /// A header cannot be sent.
    #[error("a header cannot be sent: {0}")]
    Header(#[from] http::Error),
    /// The receiver did not take it.
    #[error("the receiver answered {0}")]
    Refused(StatusCode),
    /// It took too long.
    #[error("the receiver did not answer in time")]
    Timeout,
}

/// What is posted.
#[derive(Debug, Clone)]
pub struct Letter {
    /// JSON.
    pub body: Bytes,
    /// Beside those of every post.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Makes deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub struct Courier {
    tls: Arc<rustls::ClientConfig>,
    allowed: Arc<[Cidr]>,
    patience: Duration,
}

impl Courier {
    /// A courier that trusts the system's certificate authorities, reaches public addresses and `allowed` networks, and
    /// takes at most `patience` for one delivery. Blocks for some milliseconds.
    #[must_use]
    pub fn new(allowed: Vec<Cidr>, patience: Duration) -> Self {
        Self { tls: Arc::new(tls_roots::client_config()), allowed: allowed.into(), patience }
    }

    /// Takes a URL apart and checks it.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn check(&self, url: &str) -> Result<Target, TargetError> {
        Target::parse(url, &self.allowed)
    }

    /// Posts a letter.
    ///
    /// # Errors
    /// It was not accepted with a 2xx status, for whatever reason.
    pub async fn deliver(&self, target: &Target, letter: Letter) -> Result<StatusCode, DeliveryError> {
        let status = tokio::time::timeout(self.patience, self.post(target, letter)).await;
        let status = status.map_err(|_| DeliveryError::Timeout)??;
        if status.is_success() { Ok(status) } else { Err(DeliveryError::Refused(status)) }
    }

    async fn post(&self, target: &Target, letter: Letter) -> Result<StatusCode, DeliveryError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(target.path.as_str())
            .header(header::HOST, target.authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        for (name, value) in letter.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(letter.body))?;
        let stream = self.connect(target).await?;
        if !target.tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| TargetError::Malformed("its host cannot have a certificate"))?;
        exchange(TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?, request).await
    }

    /// Connects to the first permitted address that answers.
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
    // The connection is driven here and not in a task: it ends with this call, however that ends.
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
