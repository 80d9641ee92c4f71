//! One accepted connection: HTTP/1.1 or cleartext HTTP/2, whichever the client speaks.
//! It can be reset from outside: the socket is then closed with zero linger, which sends RST instead of FIN.
//! Buffers are large, because files go through here.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body as AnyBody;
use body_drain::DrainLimits;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::target::{Target, target};
use crate::{Edge, observe, pages};

/// Longest wait for a request's head, idle time between requests included. Clients keep connections for 300 s:
/// ours must be the longer wait, or a request meets a closing socket.
const HEAD_TIMEOUT: Duration = Duration::from_secs(620);
/// Longest wait for a new connection's first request: who has nothing to ask holds no place.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest HTTP/1.1 buffer, a head included; it grows to this only while it is filled.
pub(crate) const H1_BUFFER: usize = 256 << 10;
/// Bytes an HTTP/2 peer may send ahead, per stream and per connection.
const H2_STREAM_WINDOW: u32 = 4 << 20;
const H2_CONNECTION_WINDOW: u32 = 16 << 20;
const H2_STREAMS: u32 = 1000;
/// What is read of a body that the answer did not wait for; beyond that the answer says that the connection ends.
const DRAIN_LIMITS: DrainLimits = DrainLimits { bytes: 64 << 20, time: Duration::MAX };

/// Resets a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resetter(CancellationToken);

impl Resetter {
    /// From now on nothing is read or written; the socket is closed with RST once its owner lets go.
    pub(crate) fn reset(&self) {
        self.0.cancel();
    }

    async fn asked(&self) {
        self.0.cancelled().await;
    }

    fn is_asked(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(stream: TcpStream, edge: Arc<Edge>, closing: CancellationToken) {
    // Small answers must not wait for company. Failing means the peer is gone, which the first read tells.
    let _ = stream.set_nodelay(true);
    let resetter = Resetter::default();
    let io = TokioIo::new(Resettable { stream, resetter: resetter.clone() });
    let asked = Notify::new();
    let service = service_fn(|request| {
        asked.notify_one();
        answer(request, Arc::clone(&edge), resetter.clone())
    });

    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(H1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(H2_STREAMS)
        .max_send_buf_size(H1_BUFFER);
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    let (mut draining, mut has_asked) = (false, false);
    let first = tokio::time::sleep(FIRST_HEAD_TIMEOUT);
    tokio::pin!(first);
    loop {
        tokio::select! {
            biased;
            // Dropping the connection drops the socket, and that sends the RST.
            () = resetter.asked() => return,
            () = asked.notified(), if !has_asked => has_asked = true,
            () = &mut first, if !has_asked => return,
            // A client that breaks off is its own business.
            _ = connection.as_mut() => return,
            () = closing.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    edge: Arc<Edge>,
    resetter: Resetter,
) -> Result<Response<AnyBody>, Infallible> {
    let target = target(&request, &edge.config.domain);
    // A stream of HTTP/2 ends alone.
    let is_drainable = request.version() != Version::HTTP_2 && !request.body().is_end_stream();
    let (request, drain) = if is_drainable {
        let (request, drain) = body_drain::drainable(request);
        (request.map(AnyBody::new), Some(drain))
    } else {
        (request.map(AnyBody::new), None)
    };
    let mut response = match target {
        Target::Api => edge.api.clone().oneshot(request).await?,
        Target::Sandbox(address) => observe::forward(request, address, &edge, &resetter).await,
        Target::Invalid(text) => {
            drop(request);
            pages::invalid_host(text)
        }
    };
    if let Some(drain) = drain
        && !drain.finish(DRAIN_LIMITS).await
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A socket that can be made to end with RST.
pub(crate) struct Resettable {
    stream: TcpStream,
    resetter: Resetter,
}

impl Drop for Resettable {
    fn drop(&mut self) {
        if self.resetter.is_asked() {
            // Nothing to be done if the peer was quicker.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.resetter.is_asked() {
            // A FIN would look like a proper end.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
