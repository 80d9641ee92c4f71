//! One client connection after its beginning: HTTP/1.1, or HTTP/2 if the client begins with its preface.
//! A [`Resetter`] resets it from outside: the socket is closed with zero linger, which sends RST instead of FIN.
//! Buffers are large, because file contents pass through them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body as AnyBody, Bytes};
use body_drain::{Drain, DrainLimits};
use control::Authentication;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::ext::Protocol;
use hyper::header::{CONNECTION, HeaderValue, STRICT_TRANSPORT_SECURITY};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::clients::{ActiveRequest, Client, network_of};
use crate::closing::{ClosingStream, Farewell, Resetter};
use crate::listener::{Begun, Origin};
use crate::target::{Target, target};
use crate::{Edge, hops, observe, pages, public};

/// Time limit for a request's head, including the idle time before it. Clients keep connections for 300 s: our
/// limit must be longer, or a client sends a request into a closing socket. It is shorter for anonymous connections ([`Client`]).
const HEAD_TIMEOUT: Duration = Duration::from_secs(620);
/// Maximum size of an HTTP/1.1 buffer, which holds a head too; it grows to this only when it is filled.
pub(crate) const H1_BUFFER: usize = 256 << 10;
/// Flow control windows of HTTP/2, bytes.
const H2_STREAM_WINDOW: u32 = 4 << 20;
const H2_CONNECTION_WINDOW: u32 = 16 << 20;
const H2_STREAMS: u32 = 1000;
/// How much is read of a request body that the response did not wait for. After more than that the response closes the connection.
const DRAIN_LIMITS: DrainLimits = DrainLimits { bytes: 64 << 20, time: Duration::MAX };
/// The same for clients that have shown no credentials.
const ANONYMOUS_DRAIN_LIMITS: DrainLimits = DrainLimits { bytes: 1 << 20, time: Duration::from_secs(5) };

/// Serves a connection until it ends. `closing` begins a graceful shutdown.
pub(crate) async fn serve(begun: Begun, edge: Arc<Edge>, closing: CancellationToken) {
    let Begun { stream, client, origin } = begun;
    let resetter = Resetter::default();
    let farewell = Farewell::default();
    let io = TokioIo::new(ClosingStream::new(stream, resetter.clone(), farewell.clone()));
    let handle =
        ConnectionHandle { client: Arc::clone(&client), resetter: resetter.clone(), farewell, origin };
    let service = service_fn(|request| respond(request, Arc::clone(&edge), handle.clone()));

    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(H1_BUFFER)
        .preserve_header_case(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(H2_STREAMS)
        .max_send_buf_size(H1_BUFFER)
        // Websockets over HTTP/2.
        .enable_connect_protocol();
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    let must_close = client.must_close();
    tokio::pin!(must_close);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            // Dropping the connection drops the socket, which sends the RST.
            () = resetter.requested() => return,
            () = &mut must_close => return,
            // Errors are those of the client: it broke off or sent malformed HTTP.
            _ = connection.as_mut() => return,
            () = closing.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What the service of a request knows of the connection that it came on.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionHandle {
    pub(crate) client: Arc<Client>,
    pub(crate) resetter: Resetter,
    farewell: Farewell,
    pub(crate) origin: Origin,
}

async fn respond(
    mut request: Request<Incoming>,
    edge: Arc<Edge>,
    connection: ConnectionHandle,
) -> Result<Response<AnyBody>, Infallible> {
    let active = connection.client.begin_request();
    let origin = connection.origin;
    let address = network_of(public::client_address(&request, &edge.config, origin));
    let target = match origin.redirect {
        Some(port) => Target::Redirect(port),
        None if is_foreign_connect(&request) => Target::Tunnel,
        None => match target(&request, &edge.config.domain) {
            // A sandbox reaches what is public of other sandboxes, and neither the API nor anything by headers alone.
            target if origin.is_inside && !is_public_host(&target) => Target::Invalid(NOT_FROM_INSIDE),
            target => target,
        },
    };
    let is_http2 = request.version() == Version::HTTP_2;
    if origin.is_inside {
        hops::count(request.headers_mut());
    }
    let (request, drain) = if !request.body().is_end_stream() {
        let (request, drain) = body_drain::drainable(request);
        (request.map(AnyBody::new), Some(drain))
    } else {
        (request.map(AnyBody::new), None)
    };
    let mut response = match target {
        Target::Api => api(request, &edge, &connection).await?,
        Target::Redirect(port) => pages::redirect(&request, port),
        Target::Tunnel => pages::no_tunnel(),
        Target::Sandbox(_) if hops::is_loop(request.headers()) => {
            drop(request);
            pages::request_loop()
        }
        Target::Sandbox(address) => observe::forward(request, address, &edge, &connection).await,
        Target::Invalid(text) => {
            drop(request);
            pages::invalid_host(text)
        }
    };
    let is_known = connection.client.is_authenticated();
    let limits = if is_known { DRAIN_LIMITS } else { ANONYMOUS_DRAIN_LIMITS };
    let unread = match drain {
        // The response need not wait. Dropping the rest of the request before the end of the response would cancel the stream, and
        // clients would not believe the response; some do not even if the stream then ends without an error while they send.
        Some(drain) if is_http2 => Some(UnreadBody(Some((drain, limits)))),
        Some(drain) => {
            if !drain.finish(limits).await {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                connection.farewell.linger();
            }
            None
        }
        None => None,
    };
    if let Some(seconds) = edge.config.hsts.filter(|_| origin.is_tls) {
        // Not in place of what a server in a sandbox says.
        response.headers_mut().entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| pages::hsts(seconds));
    }
    if response.extensions_mut().remove::<RefusedCredentials>().is_some() {
        // Whoever waits for this is the first to lose its connection.
        drop(active);
        tokio::time::sleep(edge.wrong_credentials.note(address)).await;
        return Ok(with_request(response, None, unread));
    }
    Ok(with_request(response, active, unread))
}

/// Has a response's body hold what must last as long as itself.
fn with_request(
    response: Response<AnyBody>,
    active: Option<ActiveRequest>,
    unread: Option<UnreadBody>,
) -> Response<AnyBody> {
    if active.is_none() && unread.is_none() {
        return response;
    }
    response.map(|body| AnyBody::new(ActiveBody { body, _active: active, _unread: unread }))
}

const NOT_FROM_INSIDE: &str = "this host cannot be reached from a sandbox";

/// Whether a request names a port of a sandbox by its host.
fn is_public_host(target: &Target) -> bool {
    let Target::Sandbox(address) = target else { return false };
    !address.shared_host && public_host(&address.host)
}

/// Whether a host begins with `<port>-<id>`.
fn public_host(host: &str) -> bool {
    let port = host.split_once('-').map(|(port, _)| port);
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a request asks for a tunnel that is not a websocket over HTTP/2.
fn is_foreign_connect<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT && !is_websocket(request)
}

/// Whether a request begins a websocket over HTTP/2 (RFC 8441).
pub(crate) fn is_websocket<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT
        && request.extensions().get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Has the API respond, and notes whom it has authenticated.
async fn api(
    mut request: Request<AnyBody>,
    edge: &Edge,
    connection: &ConnectionHandle,
) -> Result<Response<AnyBody>, Infallible> {
    let authentication = Authentication::default();
    request.extensions_mut().insert(authentication.clone());
    public::make_absolute(&mut request, &edge.config, connection.origin);
    let mut response = edge.api.clone().oneshot(request).await?;
    if let Some(account) = authentication.account() {
        connection.client.authenticate(account);
    } else if response.status() == StatusCode::UNAUTHORIZED {
        response.extensions_mut().insert(RefusedCredentials);
    }
    Ok(response)
}

/// Marks a response as the refusal of missing or wrong credentials.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedCredentials;

/// A response's body, during which the client's connection is not idle, and what is left of the request's body.
struct ActiveBody {
    body: AnyBody,
    _active: Option<ActiveRequest>,
    _unread: Option<UnreadBody>,
}

/// What a request's handler leaves of its body: it is read and discarded when the response has ended, within limits.
struct UnreadBody(Option<(Drain, DrainLimits)>);

impl Drop for UnreadBody {
    fn drop(&mut self) {
        if let Some((drain, limits)) = self.0.take() {
            tokio::spawn(drain.finish_later(limits));
        }
    }
}

impl Body for ActiveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
