//! [`ServerStream`]: a connection out of the host on behalf of a sandbox, direct or through a proxy that may be spoken to by TLS. Its bytes
//! are counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::connection_log::Meter;

/// A connection to a host, as bytes of that host. It fails when the sandbox has had all the bytes that it may.
#[derive(Debug)]
pub struct ServerStream {
    transport: Transport,
    meter: Meter,
}

/// What the bytes of a host are carried by.
#[derive(Debug)]
pub(crate) enum Transport {
    /// All bytes of the connection are the host's.
    Tcp(TcpStream),
    /// Within TLS to a proxy.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ServerStream {
    pub(crate) fn new(transport: Transport, meter: Meter) -> Self {
        Self { transport, meter }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.transport {
            Transport::Tcp(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Sends what is written at once.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        self.tcp().set_nodelay(true)
    }

    /// Whether dropping the stream sends an RST, so that the host does not take it for a proper end.
    pub(crate) fn set_reset_on_close(&self, resets: bool) -> io::Result<()> {
        Ok(sockopt::set_socket_linger(self.tcp(), resets.then_some(Duration::ZERO))?)
    }
}

/// Calls the same method of the stream inside.
macro_rules! delegate {
    ($self:expr, $method:ident, $($argument:expr),*) => {
        match &mut $self.transport {
            Transport::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(delegate!(self, poll_read, cx, buf))?;
        Poll::Ready(self.meter.received(buf.filled().len() - before))
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(delegate!(self, poll_write, cx, buf))?;
        Poll::Ready(self.meter.sent(written).map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(delegate!(self, poll_write_vectored, cx, bufs))?;
        Poll::Ready(self.meter.sent(written).map(|()| written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
