//! HTTP requests to registries: resolves the host, checks the address, connects, sends, and follows redirects.
//! Users choose the hosts, so only public addresses are reached, unless the operator named the host.
//! Every wait has a timeout; credentials are sent only to the host they are for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use net::{is_host_address, is_never_public};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::{Registries, RegistryHost};
use crate::OciError;

const USER_AGENT: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));
/// Maximum number of redirects of a request.
const MAX_REDIRECTS: usize = 5;
/// Timeout of a connection to one address, and of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the head of a response, and of each piece of its body.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends requests. Clones share the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    tls: Arc<rustls::ClientConfig>,
    registries: Arc<Registries>,
}

/// A request to a registry.
#[derive(Debug, Clone)]
pub(crate) struct HttpRequest {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// `Authorization` is sent to the host of `uri` only.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A response whose body is read from the connection, which is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) host: String,
    body: Incoming,
    _connection: Connection,
}

#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Http {
    /// Blocks for some milliseconds to read the system's certificates.
    pub(crate) fn new(registries: Registries) -> Self {
        Self { tls: Arc::new(tls_roots::client_config()), registries: Arc::new(registries) }
    }

    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Sends a request and follows redirects.
    pub(crate) async fn ask(&self, mut ask: HttpRequest) -> Result<HttpResponse, OciError> {
        for _ in 0..=MAX_REDIRECTS {
            let origin = origin_of(&ask.uri)?;
            let answer = self.exchange(&origin, &ask).await?;
            if !answer.status.is_redirection() || answer.status == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let protocol = |why: &str| protocol(&origin, why);
            let location = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| protocol("a redirect without a valid target"))?;
            let next =
                resolve(&ask.uri, location).ok_or_else(|| protocol("a redirect without a valid target"))?;
            let next_origin = origin_of(&next)?;
            if !next_origin.is_tls && !self.registries.is_insecure(&next_origin) {
                return Err(protocol("a redirect leads to a host without TLS"));
            }
            if next_origin != origin {
                ask.headers.remove(header::AUTHORIZATION);
            }
            ask.uri = next;
        }
        Err(protocol(&origin_of(&ask.uri)?, "too many redirects"))
    }

    async fn exchange(&self, origin: &RegistryHost, ask: &HttpRequest) -> Result<HttpResponse, OciError> {
        let path = ask.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(path)
            .header(header::HOST, &origin.authority)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONNECTION, "close");
        if let Some(headers) = request.headers_mut() {
            headers.extend(ask.headers.clone());
        }
        let request = request.body(Full::new(ask.body.clone()));
        let request = request.map_err(|error| protocol(origin, &error.to_string()))?;
        let stream = self.connect(origin).await?;
        if !origin.is_tls {
            return talk(origin, stream, request).await;
        }
        let name = ServerName::try_from(origin.host.clone());
        let name = name.map_err(|_| protocol(origin, "its host cannot have a certificate"))?;
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let stream = timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await;
        let stream = stream.map_err(|_| unreachable(origin, &"TLS took too long"))?;
        talk(origin, stream.map_err(|error| unreachable(origin, &error))?, request).await
    }

    /// Connects to the first permitted address that accepts the connection.
    async fn connect(&self, origin: &RegistryHost) -> Result<TcpStream, OciError> {
        let addresses: Vec<IpAddr> = match origin.host.parse() {
            Ok(address) => vec![address],
            Err(_) => {
                let looked_up =
                    timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((origin.host.as_str(), origin.port)))
                        .await;
                let looked_up =
                    looked_up.map_err(|_| unreachable(origin, &"its name is not resolved in time"))?;
                let looked_up = looked_up.map_err(|_| no_address(origin, false))?;
                looked_up.map(|address| address.ip()).collect()
            }
        };
        let mut failure = no_address(origin, false);
        for address in addresses {
            if !self.is_permitted(origin, address) {
                tracing::info!(registry = origin.authority, %address, "a registry has an internal address, which is not allowed");
                failure = no_address(origin, true);
                continue;
            }
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, origin.port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = unreachable(origin, &error),
                Err(_) => failure = unreachable(origin, &"no connection in time"),
            }
        }
        Err(failure)
    }

    fn is_permitted(&self, origin: &RegistryHost, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !(is_never_public(address) || is_host_address(address))
            || self.registries.is_named(origin)
            || self.registries.allowed.iter().any(|network| network.contains(address))
    }
}

impl HttpResponse {
    /// Reads the next piece of the body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, OciError> {
        loop {
            let frame = timeout(RESPONSE_TIMEOUT, self.body.frame()).await;
            let frame = frame.map_err(|_| self.broke_off("no data for a minute"))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.broke_off(&error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads the whole body; an error if it is longer than `most` bytes.
    pub(crate) async fn bytes(mut self, most: u64) -> Result<Vec<u8>, OciError> {
        let mut content = Vec::new();
        while let Some(piece) = self.piece().await? {
            content.extend_from_slice(&piece);
            if content.len() as u64 > most {
                return Err(OciError::Protocol {
                    registry: self.host,
                    why: "an answer is too long".to_owned(),
                });
            }
        }
        Ok(content)
    }

    fn broke_off(&self, why: &str) -> OciError {
        OciError::Unreachable { registry: self.host.clone(), why: format!("the connection broke off: {why}") }
    }
}

async fn talk<S>(
    origin: &RegistryHost,
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<HttpResponse, OciError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(origin, &error))?;
    let connection = Connection(tokio::spawn(async move {
        // Readers of the response get an error of the connection.
        let _ = connection.await;
    }));
    let answer = timeout(RESPONSE_TIMEOUT, sender.send_request(request)).await;
    let answer = answer.map_err(|_| unreachable(origin, &"no answer in time"))?;
    let (parts, body) = answer.map_err(|error| unreachable(origin, &error))?.into_parts();
    Ok(HttpResponse {
        status: parts.status,
        headers: parts.headers,
        host: origin.authority.clone(),
        body,
        _connection: connection,
    })
}

pub(crate) fn origin_of(uri: &Uri) -> Result<RegistryHost, OciError> {
    RegistryHost::of(uri).map_err(|why| OciError::Protocol { registry: uri.to_string(), why: why.to_owned() })
}

pub(crate) fn protocol(origin: &RegistryHost, why: &str) -> OciError {
    OciError::Protocol { registry: origin.authority.clone(), why: why.to_owned() }
}

fn no_address(origin: &RegistryHost, is_internal: bool) -> OciError {
    OciError::NoAddress { registry: origin.authority.clone(), is_internal }
}

fn unreachable(origin: &RegistryHost, why: &dyn std::fmt::Display) -> OciError {
    OciError::Unreachable { registry: origin.authority.clone(), why: why.to_string() }
}

/// Returns the target of a redirect: an absolute URL, or a path at the same host.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let path = location.starts_with('/') && !location.starts_with("//");
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if path { format!("{scheme}://{authority}{location}").parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://a.io/v2/x".parse().unwrap();
        assert_eq!(resolve(&base, "/y?z=1").unwrap(), "https://a.io/y?z=1");
        assert_eq!(resolve(&base, "https://b.io/y").unwrap(), "https://b.io/y");
        assert!(resolve(&base, "y").is_none() && resolve(&base, "//b.io/y").is_none());
    }

    #[tokio::test]
    async fn internal_addresses_must_be_allowed() {
        for inside in ["http://127.0.0.1:9", "http://169.254.169.254", "https://10.0.0.1", "http://[::1]:9"] {
            let ask = HttpRequest {
                method: Method::GET,
                uri: inside.parse().unwrap(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            };
            let origin = origin_of(&ask.uri).unwrap();
            let error = Http::new(Registries::default()).ask(ask).await.unwrap_err();
            assert!(matches!(error, OciError::NoAddress { is_internal: true, .. }), "{inside}: {error}");
            // The same text and the same attempts as for a name that does not exist.
            let unknown = no_address(&origin, false);
            assert_eq!(error.to_string(), unknown.to_string());
        }
    }
}
