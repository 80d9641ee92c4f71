//! A file as a response body: read in large pieces on blocking threads, one piece ahead of the network.
//! Two buffers circulate, so a transfer of any size costs the same memory.
//! No thread is held while the client does not read.

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

/// Bytes per piece.
pub const PIECE: usize = 256 * 1024;

/// Buffers that are free to be used again.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.0).clear();
        alloc::trim();
    }
}

/// A buffer that goes back to its pool once the network is done with it.
struct Pooled {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        lock(&self.pool.0).push(std::mem::take(&mut self.buffer));
    }
}

/// Reads a file piece by piece, compressing it if asked. Blocking.
#[derive(Debug)]
pub struct Source {
    file: File,
    /// Bytes still to be read; `None` means to the end, wherever that is.
    remaining: Option<u64>,
    gzip: Option<GzEncoder<Vec<u8>>>,
    pool: Arc<Pool>,
    ended: bool,
}

impl Source {
    /// Reads from where the file stands.
    pub fn new(file: File, remaining: Option<u64>) -> Self {
        Self { file, remaining, gzip: None, pool: Arc::default(), ended: false }
    }

    /// Compresses what is read.
    pub fn gzip(mut self) -> Self {
        self.gzip = Some(GzEncoder::new(Vec::with_capacity(PIECE), Compression::fast()));
        self
    }

    /// The file's next bytes, as many as fit a piece; fewer only at the end.
    pub fn read(&mut self) -> io::Result<Bytes> {
        let mut buffer = lock(&self.pool.0).pop().unwrap_or_default();
        buffer.clear();
        let piece = self.remaining.map_or(PIECE as u64, |remaining| remaining.min(PIECE as u64));
        // Reserved first, or the buffer would grow in steps.
        buffer.reserve(usize::try_from(piece).unwrap_or(PIECE));
        (&self.file).take(piece).read_to_end(&mut buffer)?;
        if let Some(remaining) = &mut self.remaining {
            *remaining -= buffer.len() as u64;
        }
        Ok(Bytes::from_owner(Pooled { buffer, pool: Arc::clone(&self.pool) }))
    }

    /// The next bytes to send; empty at the end.
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

/// The body.
#[derive(Debug)]
pub struct FileBody {
    /// Read already.
    first: Option<Bytes>,
    idle: Option<Source>,
    reading: Option<JoinHandle<(Source, io::Result<Bytes>)>>,
    /// For `Content-Length`, where it is known.
    left: Option<u64>,
}

impl FileBody {
    /// A body of `length` bytes, if that is known, of which `first` have been read.
    pub fn new(first: Option<Bytes>, source: Source, length: Option<u64>) -> Self {
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
