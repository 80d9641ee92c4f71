//! A connection to a server that may stop reading before its response is read: a server that refuses an upload
//! responds and closes. HTTP libraries give up at the first failed write, so here writes that fail for that reason
//! succeed and are discarded, and the response is still read. If there is none, reading fails.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection to a server in a sandbox that stays readable after the server has closed it.
#[derive(Debug)]
pub(crate) struct HalfClosedStream {
    stream: TcpStream,
    /// The server has closed its side; there may be a response to read.
    stopped_reading: bool,
}

impl HalfClosedStream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, stopped_reading: false }
    }

    /// Returns the outcome of a write of `wanted` bytes; success if the server no longer reads.
    fn written(&mut self, outcome: io::Result<usize>, wanted: usize) -> Poll<io::Result<usize>> {
        match outcome {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.stopped_reading = true;
                Poll::Ready(Ok(wanted))
            }
            outcome => Poll::Ready(outcome),
        }
    }
}

impl AsyncRead for HalfClosedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for HalfClosedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.stopped_reading {
            return Poll::Ready(Ok(buf.len()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.written(outcome, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if self.stopped_reading {
            return Poll::Ready(Ok(wanted));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.written(outcome, wanted)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
