//! Request bodies that an answer did not wait for.
//! Closing a connection with unread bytes makes clients lose the answer, or trip over a connection they thought was idle:
//! so what is left is read and thrown away, within bounds, and beyond them the answer says that the connection ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body as AnyBody;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, Version};

/// Most bytes that are thrown away.
const MOST: usize = 64 << 20;
/// Longest wait for the next of them: whoever sends nothing may be waiting for us.
const PATIENCE: Duration = Duration::from_millis(250);

/// Where an unread body comes back to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Slot(Arc<Mutex<Option<Incoming>>>);

/// A body on loan: what is not read of it comes back.
struct Lent {
    inner: Option<Incoming>,
    slot: Slot,
}

/// Lends a request's body to whoever answers it.
pub(crate) fn lend(request: Request<Incoming>) -> (Request<AnyBody>, Slot) {
    let slot = Slot::default();
    if request.version() == Version::HTTP_2 || request.body().is_end_stream() {
        return (request.map(AnyBody::new), slot);
    }
    let back = slot.clone();
    (request.map(|body| AnyBody::new(Lent { inner: Some(body), slot: back })), slot)
}

/// Reads what is left of a lent body, or announces the end of the connection.
pub(crate) async fn settle<B>(slot: Slot, response: &mut Response<B>) {
    let left = slot.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(body) = left
        && !discard(body).await
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// True when the body was read to its end.
async fn discard(mut body: Incoming) -> bool {
    let mut discarded = 0;
    while discarded < MOST {
        match tokio::time::timeout(PATIENCE, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, Bytes::len),
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
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            // Read to its end, or broken: nothing is left of it.
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
        if let Some(inner) = self.inner.take()
            && !inner.is_end_stream()
        {
            *self.slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner);
        }
    }
}
