//! Request bodies that an answer did not wait for: refused uploads, for the most part.
//! A connection closed with unread bytes is reset, and whoever is still sending loses the answer with it, or trips over a connection it
//! thought was idle. So what is left is read and thrown away before the answer goes out, within bounds.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;

/// Longest wait for the next piece: whoever sends nothing may be waiting for us.
const PAUSE: Duration = Duration::from_millis(250);

/// Where an unread body comes back to.
#[derive(Debug, Default, Clone)]
pub struct Leftover(Arc<Mutex<Option<Incoming>>>);

/// A request's body on loan: what is not read of it comes back.
#[derive(Debug)]
pub struct Lent {
    /// `None` once it is read to its end, or broken.
    inner: Option<Incoming>,
    leftover: Leftover,
}

/// How much of a body is read for nothing.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most bytes.
    pub bytes: u64,
    /// Longest time in all.
    pub time: Duration,
}

/// Lends a request's body to whoever answers it.
pub fn lend(request: Request<Incoming>) -> (Request<Lent>, Leftover) {
    let leftover = Leftover::default();
    let back = leftover.clone();
    (request.map(|body| Lent { inner: Some(body), leftover: back }), leftover)
}

impl Leftover {
    /// Reads what has come back. Answers whether nothing is left; the rest, its sender has to see to.
    pub async fn discard(self, bounds: Bounds) -> bool {
        let Some(body) = self.take() else { return true };
        tokio::time::timeout(bounds.time, read(body, bounds.bytes)).await.unwrap_or(false)
    }

    fn take(&self) -> Option<Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

async fn read(mut body: Incoming, most: u64) -> bool {
    let mut discarded = 0;
    while discarded < most {
        match tokio::time::timeout(PAUSE, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, |data| data.len() as u64),
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
    false
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) {
            *self.leftover.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner);
        }
    }
}
