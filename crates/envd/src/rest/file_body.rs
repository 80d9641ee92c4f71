//! A file as a response body: it is read in large pieces on blocking threads, one piece ahead of the network.
//! Two buffers are reused, so the memory of a transfer does not depend on its size.
//! No thread is blocked while the client does not read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::alloc;
use crate::state::lock;

/// Size of a piece, bytes.
pub const PIECE: usize = 256 * 1024;

/// Buffers for reuse.
#[derive(Debug, Default)]
struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl Drop for BufferPool {
    fn drop(&mut self) {
        lock(&self.0).clear();
        alloc::trim();
    }
}

/// A buffer that goes back to its pool once it has been sent.
struct PooledBuffer {
    buffer: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        lock(&self.pool.0).push(std::mem::take(&mut self.buffer));
    }
}

/// Reads a file in pieces, and compresses it if requested. Blocking.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    /// Number of bytes left to read; `None` to read to the end.
    remaining: Option<u64>,
    gzip: Option<GzEncoder<Vec<u8>>>,
    pool: Arc<BufferPool>,
    ended: bool,
}

impl FileReader {
    /// Reads `remaining` bytes from the current position, or to the end.
    pub fn new(file: File, remaining: Option<u64>) -> Self {
        Self { file, remaining, gzip: None, pool: Arc::default(), ended: false }
    }

    /// Compresses the contents with gzip.
    pub fn gzip(mut self) -> Self {
        self.gzip = Some(GzEncoder::new(Vec::with_capacity(PIECE), Compression::fast()));
        self
    }

    /// Reads the next bytes, one piece; fewer only at the end.
    pub fn read(&mut self) -> io::Result<Bytes> {
        let mut buffer = lock(&self.pool.0).pop().unwrap_or_default();
        buffer.clear();
        let piece = self.remaining.map_or(PIECE as u64, |remaining| remaining.min(PIECE as u64));
        // Reserved at once, or the buffer would grow in steps.
        buffer.reserve(usize::try_from(piece).unwrap_or(PIECE));
        (&self.file).take(piece).read_to_end(&mut buffer)?;
        if let Some(remaining) = &mut self.remaining {
            *remaining -= buffer.len() as u64;
        }
        Ok(Bytes::from_owner(PooledBuffer { buffer, pool: Arc::clone(&self.pool) }))
    }

    /// Returns the next bytes to send; empty at the end.
    fn next(&mut self) -> io::Result<Bytes> {
        loop {
            if self.ended || self.remaining == Some(0) && self.gzip.is_none() {
                return Ok(Bytes::new());
            }
            let piece = self.read()?;
            let Some(gzip) = &mut self.gzip else {
                if piece.is_empty() && self.remaining.is_some() {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
                }
                return Ok(piece);
            };
            gzip.write_all(&piece)?;
            if piece.is_empty() {
                self.ended = true;
                gzip.try_finish()?;
            }
            let compressed = std::mem::replace(gzip.get_mut(), Vec::with_capacity(PIECE));
            if !compressed.is_empty() {
                return Ok(compressed.into());
            }
        }
    }
}

/// The response body.
#[derive(Debug)]
pub struct FileBody {
    /// A piece that was read already.
    first: Option<Bytes>,
    idle: Option<FileReader>,
    reading: Option<JoinHandle<(FileReader, io::Result<Bytes>)>>,
    /// Number of bytes left to send, if known; for `Content-Length`.
    left: Option<u64>,
}

impl FileBody {
    /// Makes a body of `length` bytes, if known. `first` was read from the file already.
    pub fn new(first: Option<Bytes>, source: FileReader, length: Option<u64>) -> Self {
        Self { first, idle: Some(source), reading: None, left: length }
    }

    fn read_ahead(&mut self) {
        if let Some(mut source) = self.idle.take() {
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let piece = source.next();
                (source, piece)
            }));
        }
    }

    fn send(&mut self, piece: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(piece.len() as u64);
        }
        if self.left != Some(0) {
            self.read_ahead();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return self.send(first);
        }
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        self.read_ahead();
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let joined = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let (source, piece) = match joined {
            Ok((source, Ok(piece))) => (source, piece),
            Ok((_, Err(error))) => return Poll::Ready(Some(Err(error))),
            Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
        };
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        self.idle = Some(source);
        self.send(piece)
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
