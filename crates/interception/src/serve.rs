//! Serves one connection of a client: TLS, then requests one after another or, with HTTP/2, beside each other.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use net::{Intercepted, Outbound};
use parking_lot::Mutex;
use rustls::server::Acceptor;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::leaves::H2;
use crate::prefixed::Prefixed;
use crate::refusal::Refusal;
use crate::upstream::{LeasedBody, Upstream};
use crate::{Asker, Inner, headers, target};

/// Maximum time of a client's TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the buffers of a connection, which also limits the head of a message, bytes.
pub(crate) const MAX_BUFFER: usize = 128 << 10;
/// How much a peer may send ahead on HTTP/2 before it is read, bytes.
pub(crate) const H2_STREAM_WINDOW: u32 = 128 << 10;
/// Maximum number of requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 32;
/// How much of a response waits for a slow client, on each of those requests, bytes. All of them together stay within what a connection may
/// cost the server.
pub(crate) const H2_SEND_BUFFER: usize = 16 << 10;
/// Maximum size of the headers of a request on HTTP/2, bytes.
const MAX_HEADERS: u32 = 64 << 10;

pub(crate) type RequestBody = Incoming;
pub(crate) type ResponseBody = BoxBody<Bytes, hyper::Error>;
type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One connection of a client.
struct Connection {
    interceptor: Arc<Inner>,
    outbound: Arc<dyn Outbound>,
    host: String,
    port: u16,
    upstream: Arc<Upstream>,
    /// What remains to be done after a switch of protocols.
    tunnel: Mutex<Option<Tunnel>>,
}

/// Serves a connection to its end.
pub(crate) async fn serve(interceptor: &Arc<Inner>, intercepted: Intercepted) -> io::Result<()> {
    let Intercepted { client, head, host, port, outbound } = intercepted;
    client.set_nodelay(true)?;
    let accepted = accept(interceptor, Prefixed::new(head, client), &host);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await??;
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
    let upstream = Upstream::new(&interceptor.tls, Arc::clone(&outbound), &host, port, is_h2);
    // Tasks of HTTP/2 streams may outlive this call for a moment; without connections they end.
    let _closed_at_the_end = upstream.close_on_drop();
    let interceptor = Arc::clone(interceptor);
    let connection =
        Arc::new(Connection { interceptor, outbound, host, port, upstream, tunnel: Mutex::default() });
    let stream = TokioIo::new(stream);
    let served =
        if is_h2 { serve_h2(&connection, stream).await } else { serve_h1(&connection, stream).await };
    let tunnel = connection.tunnel.lock().take();
    if let Some(tunnel) = tunnel {
        tunnel.await;
    }
    served.map_err(io::Error::other)
}

/// Does the TLS handshake with the client, in the name of the host.
async fn accept(interceptor: &Inner, stream: Prefixed, host: &str) -> io::Result<TlsStream<Prefixed>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let named = start.client_hello().server_name().map(str::to_owned);
    // The gateway has found the name by itself; what is certified must be what the rule was found for.
    if !named.is_some_and(|named| named.trim_end_matches('.').eq_ignore_ascii_case(host)) {
        return Err(io::Error::other("the server name is not clear"));
    }
    let config = interceptor.leaves.config(host).map_err(io::Error::other)?;
    start.into_stream(config).await
}

async fn serve_h1(connection: &Arc<Connection>, stream: TokioIo<TlsStream<Prefixed>>) -> hyper::Result<()> {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.preserve_header_case(true).title_case_headers(true).half_close(true).max_buf_size(MAX_BUFFER);
    builder.auto_date_header(false);
    builder.serve_connection(stream, service(Arc::clone(connection))).with_upgrades().await
}

async fn serve_h2(connection: &Arc<Connection>, stream: TokioIo<TlsStream<Prefixed>>) -> hyper::Result<()> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_STREAM_WINDOW * 2)
        .max_send_buf_size(H2_SEND_BUFFER)
        .auto_date_header(false);
    builder.serve_connection(stream, service(Arc::clone(connection))).await
}

fn service(
    connection: Arc<Connection>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<ResponseBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'static,
> {
    service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok(connection.respond(request).await) }
    })
}

impl Connection {
    async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        self.forward(request).await.unwrap_or_else(|refusal| {
            debug!(sandbox_id = self.outbound.sandbox(), host = self.host, %refusal, "request not forwarded");
            refusal.response()
        })
    }

    /// Sends a request to the host, with the headers of the present rule.
    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
        target::check(&request, &self.host, self.port)?;
        let switches = request.version() != Version::HTTP_2 && headers::wants_upgrade(request.headers());
        let client = switches.then(|| hyper::upgrade::on(&mut request));
        let authority = self.prepare(&mut request, switches).await?;
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let prepare = |request: &mut Request<Incoming>, is_h2: bool| {
            set_target(request, &authority, &path, is_h2);
        };
        let sent = self.upstream.send(request, prepare).await;
        let (mut response, lease) = sent.map_err(|error| Refusal::failed(error.to_string()))?;
        let has_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        headers::strip_hop_by_hop(response.headers_mut(), has_switched);
        *response.version_mut() = Version::default();
        if !has_switched {
            return Ok(response.map(|body| LeasedBody::new(body, lease).boxed()));
        }
        let client = client.ok_or_else(|| Refusal::failed("the host switched protocols unasked"))?;
        let server = hyper::upgrade::on(&mut response);
        lease.discard();
        *self.tunnel.lock() = Some(Box::pin(async move {
            if let (Ok(client), Ok(server)) = (client.await, server.await) {
                let _ = stream_copy::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server))
                    .await;
            }
        }));
        Ok(response.map(|_| http_body_util::Empty::new().map_err(|never| match never {}).boxed()))
    }

    /// Changes the headers of a request; returns the host that it is to name.
    async fn prepare(&self, request: &mut Request<Incoming>, switches: bool) -> Result<Authority, Refusal> {
        let named = request.headers_mut().remove(HOST);
        let of_uri = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
        let mut host = match of_uri {
            Some(Ok(host)) => host,
            _ => named.ok_or(Refusal::Misdirected)?,
        };
        let own = request.headers_mut();
        // Whoever sends both wants two readers to see different ends of the message.
        if own.contains_key(TRANSFER_ENCODING) {
            own.remove(CONTENT_LENGTH);
        }
        // The server here has asked for the body by reading it.
        own.remove(http::header::EXPECT);
        // Before the rule is applied: a client may name any header as one of its connection.
        headers::strip_hop_by_hop(own, switches);
        headers::join_cookies(own);
        if let Some(sandbox) = self.outbound.rules()
            && let Some(rule) = sandbox.rules.find(&self.host, self.port)
        {
            let asker = Asker { team: sandbox.team, sandbox: self.outbound.sandbox(), host: &self.host };
            let set = headers::apply(own, rule, &asker, &*self.interceptor.secrets).await?;
            host = set.unwrap_or(host);
        }
        Authority::try_from(host.as_bytes())
            .map_err(|_| Refusal::failed("the value of header \"Host\" is not a host"))
    }
}

/// Sets the form of a request for the protocol of the connection that it is sent on.
fn set_target(request: &mut Request<Incoming>, authority: &Authority, path: &PathAndQuery, is_h2: bool) {
    if is_h2 {
        *request.version_mut() = Version::HTTP_2;
        let own = request.headers_mut();
        own.remove(HOST);
        headers::strip_hop_by_hop(own, false);
        let uri =
            Uri::builder().scheme(Scheme::HTTPS).authority(authority.clone()).path_and_query(path.clone());
        *request.uri_mut() = uri.build().expect("all three parts are given");
        return;
    }
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from(path.clone());
    if let Ok(mut host) = HeaderValue::from_str(authority.as_str()) {
        host.set_sensitive(true);
        request.headers_mut().insert(HOST, host);
    }
}
