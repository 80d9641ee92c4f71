//! [`copy_bidirectional`]: copies between two streams as tokio's function of that name does, but holds no buffer while it waits for data.
//!
//! Thousands of idle connections of sandboxes would otherwise hold 128 KiB each. Data is read into a buffer of the thread and written from there; only
//! what the receiver does not take at once is kept.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of a thread's buffer, bytes: the most that a direction keeps for a slow receiver.
const BUFFER: usize = 64 << 10;

thread_local! {
    /// Taken while a thread copies, so that a nested copy would get one of its own.
    static THREAD_BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Copies in both directions until both streams have ended. When one ends, the other is shut down for writing; the opposite direction
/// continues.
///
/// # Errors
/// The first error of either stream; the rest is not copied then.
pub async fn copy_bidirectional<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let forth = forth.poll(cx, Pin::new(&mut *a), Pin::new(&mut *b))?;
        let back = back.poll(cx, Pin::new(&mut *b), Pin::new(&mut *a))?;
        if forth.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a copy.
#[derive(Debug, Default)]
struct Direction {
    /// What was read and not yet written.
    unwritten: Vec<u8>,
    written: usize,
    needs_flush: bool,
    phase: Phase,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Copying,
    /// The reader has ended; the writer is to be told.
    Closing,
    Closed,
}

impl Direction {
    /// Copies what can be copied now. Ready when the reader has ended and the writer was told.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut (impl AsyncRead + ?Sized)>,
        mut writer: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<io::Result<()>> {
        while self.phase == Phase::Copying {
            ready!(self.poll_write_rest(cx, writer.as_mut()))?;
            let mut buffer = THREAD_BUFFER.take().unwrap_or_else(|| vec![0; BUFFER].into());
            let copied = self.poll_once(cx, reader.as_mut(), writer.as_mut(), &mut buffer);
            THREAD_BUFFER.set(Some(buffer));
            ready!(copied)?;
        }
        if self.phase == Phase::Closing {
            // Flushes first.
            ready!(writer.poll_shutdown(cx))?;
            self.phase = Phase::Closed;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes as much of it as the writer takes.
    fn poll_once(
        &mut self,
        cx: &mut Context<'_>,
        reader: Pin<&mut (impl AsyncRead + ?Sized)>,
        mut writer: Pin<&mut (impl AsyncWrite + ?Sized)>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let mut read = ReadBuf::new(buffer);
        if reader.poll_read(cx, &mut read)?.is_pending() {
            if self.needs_flush {
                ready!(writer.poll_flush(cx))?;
                self.needs_flush = false;
            }
            return Poll::Pending;
        }
        let mut rest = read.filled();
        if rest.is_empty() {
            self.phase = Phase::Closing;
        }
        self.needs_flush = true;
        while !rest.is_empty() {
            match writer.as_mut().poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => rest = &rest[count..],
                Poll::Pending => {
                    self.unwritten = rest.to_vec();
                    self.written = 0;
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what an earlier call could not write.
    fn poll_write_rest(
        &mut self,
        cx: &mut Context<'_>,
        mut writer: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.unwritten.len() {
            let count = ready!(writer.as_mut().poll_write(cx, &self.unwritten[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        // Frees the memory, which `clear` would keep.
        (self.unwritten, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Returns `length` bytes without a short period.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap()).collect()
    }

    #[tokio::test]
    async fn both_directions_arrive_whole_through_a_narrow_pipe() {
        // The pipe takes less than a read returns, so that rests are kept.
        let ((mut client, mut a), (mut b, mut server)) = (duplex(1 << 20), duplex(1000));
        let copy = tokio::spawn(async move { copy_bidirectional(&mut a, &mut b).await });
        let (sent, answered) = (pattern(500_000), pattern(300_001));
        let (to_send, to_answer) = (sent.clone(), answered.clone());
        let server = tokio::spawn(async move {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            server.write_all(&to_answer).await.unwrap();
            drop(server);
            received
        });
        client.write_all(&to_send).await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(server.await.unwrap() == sent && received == answered);
        copy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_side_that_has_ended_still_receives() {
        let ((mut client, mut a), (mut b, mut server)) = (duplex(64), duplex(64));
        let copy = tokio::spawn(async move { copy_bidirectional(&mut a, &mut b).await });
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        client.write_all(b"late").await.unwrap();
        let mut late = [0; 4];
        server.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"late");
        client.shutdown().await.unwrap();
        copy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_error_ends_the_copy() {
        let ((client, mut a), (mut b, mut server)) = (duplex(64), duplex(64));
        drop(client);
        let copy = tokio::spawn(async move { copy_bidirectional(&mut a, &mut b).await });
        // The client's end is gone: writing to it fails.
        server.write_all(b"x").await.unwrap();
        assert!(copy.await.unwrap().is_err());
    }
}
