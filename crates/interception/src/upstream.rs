//! Connections to the host that a client's connection is for. They belong to that one client's connection and are closed with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use budget::Share;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use net::{DialError, Dialled, Outbound, ServerStream};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::leaves::{H2, HTTP1};
use crate::serve::{H2_SEND_BUFFER, H2_STREAM_WINDOW, MAX_BUFFER, RequestBody};

/// Maximum time of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum wait for a connection whose last response has ended to take the next request.
const MAX_READY_WAIT: Duration = Duration::from_millis(100);
/// Maximum number of HTTP/1.1 connections to the host for one HTTP/2 connection of a client.
const MAX_CONNECTIONS: usize = 4;

/// TLS configurations of connections to hosts, by the protocols that are offered.
#[derive(Debug)]
pub(crate) struct TlsClients {
    any: Arc<ClientConfig>,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
}

impl TlsClients {
    pub(crate) fn new(authorities: &str) -> Self {
        let config = tls_roots::client_config_with(authorities);
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self { any: offering(&[H2, HTTP1]), h1: offering(&[HTTP1]), h2: offering(&[H2]) }
    }
}

/// Why a request got no response. The texts are shown in the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("TLS with the host failed: {0}")]
    Tls(io::Error),
    #[error("TLS with the host took too long")]
    TlsTimeout,
    #[error("the host's response is not usable: {0}")]
    Http(#[from] hyper::Error),
}

/// The connections to one host of one client's connection.
pub(crate) struct Upstream {
    outbound: Arc<dyn Outbound>,
    host: String,
    port: u16,
    /// Offers the client's protocol and those that it can be translated to, and what to try if the host has none of them.
    tls: (TlsConnector, Option<TlsConnector>),
    h2: Mutex<Option<http2::SendRequest<RequestBody>>>,
    idle: Mutex<Vec<http1::SendRequest<RequestBody>>>,
    connecting: tokio::sync::Mutex<()>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

/// A connection that a request can be sent on.
enum Sender {
    H1(http1::SendRequest<RequestBody>),
    H2(http2::SendRequest<RequestBody>),
}

impl Upstream {
    pub(crate) fn new(
        tls: &TlsClients,
        outbound: Arc<dyn Outbound>,
        host: &str,
        port: u16,
        is_h2: bool,
    ) -> Arc<Self> {
        let connector = |config: &Arc<ClientConfig>| TlsConnector::from(Arc::clone(config));
        // A client of HTTP/1.1 may switch protocols later, which needs HTTP/1.1 on both sides.
        let tls =
            if is_h2 { (connector(&tls.any), None) } else { (connector(&tls.h1), Some(connector(&tls.h2))) };
        Arc::new(Self {
            outbound,
            host: host.to_owned(),
            port,
            tls,
            h2: Mutex::default(),
            idle: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            stop: CancellationToken::new(),
        })
    }

    /// Returns a guard that closes all connections when it is dropped.
    pub(crate) fn close_on_drop(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// Sends a request. It is sent a second time only if nothing of it was sent: the host may close idle connections at any time.
    /// `prepare` gives it the form of the connection's protocol; true stands for HTTP/2.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        prepare: impl Fn(&mut Request<RequestBody>, bool),
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        loop {
            let (sender, permit, is_fresh) = self.sender().await?;
            prepare(&mut request, matches!(sender, Sender::H2(_)));
            let (sent, lease) = match sender {
                Sender::H2(mut sender) => (sender.try_send_request(request).await, Lease(None)),
                Sender::H1(mut sender) => {
                    let sent = sender.try_send_request(request).await;
                    (sent, Lease(Some((sender, Arc::clone(self), permit))))
                }
            };
            match sent {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_fresh => {
                        lease.discard();
                        request = unsent;
                    }
                    _ => {
                        lease.discard();
                        return Err(error.into_error().into());
                    }
                },
            }
        }
    }

    /// Returns a connection that can be used, and whether it is a new one.
    async fn sender(self: &Arc<Self>) -> Result<(Sender, Option<OwnedSemaphorePermit>, bool), SendError> {
        if let Some(sender) = self.ready_h2() {
            return Ok((sender, None, false));
        }
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        // Requests that come at once do not each open a connection if the first one can take them all.
        let _turn = self.connecting.lock().await;
        if let Some(sender) = self.ready_h2() {
            return Ok((sender, None, false));
        }
        loop {
            let Some(mut idle) = self.idle.lock().pop() else { break };
            // Not so if a request is still being sent whose response has ended; others do not wait for it.
            if matches!(tokio::time::timeout(MAX_READY_WAIT, idle.ready()).await, Ok(Ok(()))) {
                return Ok((Sender::H1(idle), permit, false));
            }
        }
        let sender = self.connect().await?;
        Ok((sender, permit, true))
    }

    fn ready_h2(&self) -> Option<Sender> {
        let mut h2 = self.h2.lock();
        if h2.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *h2 = None;
        }
        h2.clone().map(Sender::H2)
    }

    async fn connect(self: &Arc<Self>) -> Result<Sender, SendError> {
        let Dialled { stream, share, is_plain } = self.outbound.dial(&self.host, self.port).await?;
        if is_plain {
            return self.speak_h1(stream, share).await;
        }
        let (stream, share) = match self.tls(&self.tls.0, stream).await {
            // The host has no protocol of those that were offered.
            Err(SendError::Tls(error)) if has_no_protocol(&error) => {
                let Some(connector) = &self.tls.1 else { return Err(SendError::Tls(error)) };
                let Dialled { stream, share, .. } = self.outbound.dial(&self.host, self.port).await?;
                (self.tls(connector, stream).await?, share)
            }
            other => (other?, share),
        };
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            return self.speak_h1(stream, share).await;
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_STREAM_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        self.drive(connection, share);
        *self.h2.lock() = Some(sender.clone());
        Ok(Sender::H2(sender))
    }

    async fn speak_h1(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        share: Share,
    ) -> Result<Sender, SendError> {
        let mut builder = http1::Builder::new();
        // Names that the client did not send are written as rules usually spell them.
        builder.preserve_header_case(true).title_case_headers(true).max_buf_size(MAX_BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        self.drive(connection.with_upgrades(), share);
        Ok(Sender::H1(sender))
    }

    /// Keeps a connection going until it ends, its place is needed, or the client's connection ends.
    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static, share: Share) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = connection => {}
                () = share.revoked() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn tls(
        &self,
        connector: &TlsConnector,
        stream: ServerStream,
    ) -> Result<TlsStream<ServerStream>, SendError> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| DialError::Unresolved)?;
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await;
        connected.map_err(|_| SendError::TlsTimeout)?.map_err(SendError::Tls)
    }
}

/// Whether a handshake failed because the host has none of the offered protocols.
fn has_no_protocol(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(
            rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
                | rustls::Error::NoApplicationProtocol
        )
    )
}

/// Gives an HTTP/1.1 connection back when the response has ended.
pub(crate) struct Lease(
    Option<(http1::SendRequest<RequestBody>, Arc<Upstream>, Option<OwnedSemaphorePermit>)>,
);

impl Lease {
    /// Lets the connection go.
    pub(crate) fn discard(mut self) {
        self.0 = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((sender, upstream, permit)) = self.0.take() else { return };
        if !sender.is_closed() {
            upstream.idle.lock().push(sender);
        }
        drop(permit);
    }
}

/// The body of a response, which holds the connection that it comes on.
pub(crate) struct LeasedBody {
    body: Incoming,
    lease: Option<Lease>,
}

impl LeasedBody {
    pub(crate) fn new(body: Incoming, lease: Lease) -> Self {
        Self { body, lease: Some(lease) }
    }
}

impl Body for LeasedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) {
            self.lease = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
