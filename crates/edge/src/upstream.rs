//! Connections to servers in sandboxes: HTTP/1.1, or HTTP/2 for gRPC, over a stream that the engine opens.
//! User servers get one connection per request, as from a browser's first visit;
//! connections to envd are reused for a while, because clients make several calls in a row.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use budget::{Account, Exhausted, Holder, Share, Use};
use control::RunningSandbox;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::client::conn::http2;
use hyper::header::HOST;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ids::ExecutionId;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Edge;
use crate::connection::H1_BUFFER;
use crate::half_closed::HalfClosedStream;

/// How long an idle connection to envd is kept.
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);
/// Maximum number of idle connections to one envd.
const MAX_IDLE_PER_ENVD: usize = 4;

/// Flow control windows of HTTP/2 towards servers in sandboxes, bytes.
const H2_WINDOW: u32 = 1 << 20;

pub(crate) type Sender = SendRequest<Body>;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot connect: {0}")]
    Dial(#[from] std::io::Error),
    #[error("no response: {0}")]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// Idle connections to envd, by execution: a resumed or restarted sandbox never gets a connection from before.
#[derive(Debug, Default, Clone)]
pub(crate) struct IdleConnections {
    inner: Arc<Mutex<HashMap<ExecutionId, Vec<IdleConnection>>>>,
}

#[derive(Debug)]
struct IdleConnection {
    sender: Sender,
    since: Instant,
}

impl IdleConnections {
    fn take(&self, execution: ExecutionId) -> Option<Sender> {
        let mut pools = self.inner.lock();
        let pool = pools.get_mut(&execution)?;
        while let Some(idle) = pool.pop() {
            if idle.sender.is_ready() && idle.since.elapsed() < MAX_IDLE_TIME {
                return Some(idle.sender);
            }
        }
        None
    }

    /// Keeps a connection whose last response has been read to its end.
    pub(crate) fn put(&self, live: &Arc<RunningSandbox>, sender: Sender) {
        if sender.is_closed() || live.has_ended() {
            return;
        }
        let idle = IdleConnection { sender, since: Instant::now() };
        let first = {
            let mut pools = self.inner.lock();
            let first = !pools.contains_key(&live.execution);
            let pool = pools.entry(live.execution).or_default();
            if pool.len() < MAX_IDLE_PER_ENVD {
                pool.push(idle);
            }
            first
        };
        if first {
            tokio::spawn(self.clone().expire(Arc::clone(live)));
        }
    }

    /// Drops connections that have been idle for too long, and all when the sandbox ends; returns when none is left.
    async fn expire(self, live: Arc<RunningSandbox>) {
        loop {
            let ended = tokio::time::timeout(MAX_IDLE_TIME, live.wait_ended()).await.is_ok();
            let mut pools = self.inner.lock();
            let Some(pool) = pools.get_mut(&live.execution) else { return };
            pool.retain(|idle| !ended && idle.since.elapsed() < MAX_IDLE_TIME && !idle.sender.is_closed());
            if pool.is_empty() {
                pools.remove(&live.execution);
                return;
            }
        }
    }

    /// Drops all connections.
    pub(crate) fn close(&self) {
        self.inner.lock().clear();
    }
}

/// How a request and its response are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// By HTTP/1.1, over a connection to envd that may serve other requests too.
    Reusable,
    /// By HTTP/1.1, over a connection that may become something else.
    Once,
    /// By HTTP/2 without TLS, as servers of gRPC speak it.
    Http2,
}

/// Sends a request to a port of a sandbox. Returns the response, and the connection if it may be reused.
pub(crate) async fn send(
    edge: &Edge,
    live: &RunningSandbox,
    port: u16,
    mut request: Request<Body>,
    how: Exchange,
) -> Result<(Response<Incoming>, Option<Sender>), Failure> {
    let reusable = how == Exchange::Reusable && port == envd_api::PORT;
    while reusable && let Some(mut sender) = edge.idle.take(live.execution) {
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Some(sender))),
            // The connection was closed meanwhile and nothing has been sent: try another.
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(error.into_error().into()),
            },
        }
    }
    let account = Account { group: Holder(live.team.as_u128()), member: Holder(live.execution.as_u128()) };
    // Held by the connection, and by the tunnel that it may become.
    let share = Arc::new(edge.config.sandbox_connections.take(account, Use::Busy, usize::MAX)?);
    let stream = live.dial(port).await?;
    // If this fails, the peer is gone, and the first write fails too.
    let _ = stream.set_nodelay(true);
    if how == Exchange::Http2 {
        return Ok((send_by_http2(stream, share, request).await?, None));
    }
    let in_connection = Arc::clone(&share);
    let mut builder = Builder::new();
    // Servers written by hand look for names as clients of HTTP/1.1 spell them. Those of HTTP/2 have no capitals: then as Go's and
    // Node's clients would.
    builder.max_buf_size(H1_BUFFER).preserve_header_case(true).title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(HalfClosedStream::new(stream))).await?;
    tokio::spawn(async move {
        tokio::select! {
            // The request below reports the same failure.
            _ = connection.with_upgrades() => {}
            // Others need the connection more: the response is cut off.
            () = in_connection.revoked() => {}
        }
    });
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        response.extensions_mut().insert(share);
    }
    Ok((response, reusable.then_some(sender)))
}

/// Sends a request by HTTP/2. The connection ends with the response.
async fn send_by_http2(
    stream: TcpStream,
    share: Arc<Share>,
    mut request: Request<Body>,
) -> hyper::Result<Response<Incoming>> {
    // The host is in the target there.
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    parts.authority.get_or_insert(Authority::from_static("localhost"));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_send_buf_size(H1_BUFFER);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        tokio::select! {
            _ = connection => {}
            () = share.revoked() => {}
        }
    });
    sender.send_request(request).await
}
