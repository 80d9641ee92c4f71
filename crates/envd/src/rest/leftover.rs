//! Request bodies that an answer did not wait for: refused uploads, for the most part.
//! A connection closed with unread bytes is reset, and whoever is still sending loses the answer with it: what is left
//! is read and thrown away before the answer goes out, unless it pauses, for then the other side may be waiting for us.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::state::lock;

/// Longest pause between two pieces.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest time in all.
const LIMIT: Duration = Duration::from_secs(60);

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

/// Lends a request's body to whoever answers it.
pub fn lend(request: Request<Incoming>) -> (Request<Lent>, Leftover) {
    let leftover = Leftover::default();
    let back = leftover.clone();
    (request.map(|body| Lent { inner: Some(body), leftover: back }), leftover)
}

impl Leftover {
    /// Reads what has come back to its end, within limits.
    pub async fn discard(self) {
        let Some(mut body) = lock(&self.0).take() else { return };
        let rest = async { while let Ok(Some(Ok(_))) = tokio::time::timeout(PAUSE, body.frame()).await {} };
        // What is left after that, its sender has to see to.
        let _ = tokio::time::timeout(LIMIT, rest).await;
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
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
            *lock(&self.leftover.0) = Some(inner);
        }
    }
}
