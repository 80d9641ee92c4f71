//! How a client's connection ends: with RST, where the end must not look like that of a response, or after what the client still sends of a
//! request that has its response already. Closing a socket with unread bytes resets it, and the client may lose the response.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::stream::ClientStream;

/// How long, and for how many bytes, a client may go on to send after the last response.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 << 20;

/// Resets a client's connection. Clones reset the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resetter(CancellationToken);

impl Resetter {
    /// Stops all reading and writing. The socket is closed with RST when its owner drops it.
    pub(crate) fn reset(&self) {
        self.0.cancel();
    }

    pub(crate) async fn requested(&self) {
        self.0.cancelled().await;
    }

    fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Whether the client may still be sending when the connection ends. Clones are of the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Farewell(Arc<AtomicBool>);

impl Farewell {
    /// Notes that the rest of a request was not read.
    pub(crate) fn linger(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn lingers(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Discards what a client sends until it closes, or for the time and the bytes that it has.
struct Lingering {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl Lingering {
    fn begin() -> Self {
        Self { until: Box::pin(tokio::time::sleep(LINGER_TIME)), left: LINGER_BYTES }
    }

    fn poll(&mut self, stream: &mut ClientStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut discarded = [0; 8 << 10];
        while self.left > 0 && self.until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

/// A socket that its [`Resetter`] closes with RST, or that lingers at its end.
pub(crate) struct ClosingStream {
    stream: ClientStream,
    resetter: Resetter,
    farewell: Farewell,
    lingering: Option<Lingering>,
}

impl ClosingStream {
    pub(crate) fn new(stream: ClientStream, resetter: Resetter, farewell: Farewell) -> Self {
        Self { stream, resetter, farewell, lingering: None }
    }
}

impl Drop for ClosingStream {
    fn drop(&mut self) {
        if self.resetter.is_requested() {
            self.stream.reset_at_close();
        }
    }
}

impl AsyncRead for ClosingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClosingStream {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.resetter.is_requested() {
            // A FIN would look like a complete response.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let this = self.get_mut();
        let lingering = match &mut this.lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                if !this.farewell.lingers() {
                    return Poll::Ready(Ok(()));
                }
                this.lingering.insert(Lingering::begin())
            }
        };
        lingering.poll(&mut this.stream, cx).map(Ok)
    }
}
