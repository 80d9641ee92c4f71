//! Reads and discards request bodies that a response did not wait for, such as those of refused uploads.
//! Closing a connection with unread bytes resets it: a client that is still sending then loses the response,
//! and one with an idle connection finds it broken. So the rest of a body is read before the response goes
//! out, up to a limit.
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
use tokio::sync::Notify;

/// How long to wait for the next piece. A client that sends nothing may be waiting for our response.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// How long a client that sends too much may take to notice the response, before its stream ends.
const MAX_NOTICE_DELAY: Duration = Duration::from_millis(500);
/// How long after a response its handler may keep the request's body.
const MAX_HANDLER_DELAY: Duration = Duration::from_secs(5);

/// Holds the body of a request after its [`DrainableBody`] was dropped before its end.
#[derive(Debug, Default, Clone)]
pub struct Drain(Arc<Unread>);

#[derive(Debug, Default)]
struct Unread {
    body: Mutex<Option<Incoming>>,
    /// The [`DrainableBody`] was dropped.
    dropped: Notify,
}

/// A request's body. If it is dropped before its end, the [`Drain`] gets the rest.
#[derive(Debug)]
pub struct DrainableBody {
    /// `None` once the body has ended or failed.
    inner: Option<Incoming>,
    drain: Drain,
}

/// How much of a body is read only to be discarded.
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// Maximum number of bytes.
    pub bytes: u64,
    /// Maximum total time.
    pub time: Duration,
}

/// Makes a request's body drainable. Hand the request to its handler, and call [`Drain::finish`] once the
/// handler has returned.
pub fn drainable(request: Request<Incoming>) -> (Request<DrainableBody>, Drain) {
    let drain = Drain::default();
    let body_drain = drain.clone();
    (request.map(|body| DrainableBody { inner: Some(body), drain: body_drain }), drain)
}

impl Drain {
    /// Reads the rest of the body and discards it. Returns whether the body is at its end; if not, the
    /// connection cannot be used for another request.
    pub async fn finish(self, limits: DrainLimits) -> bool {
        let Some(mut body) = self.take() else { return true };
        tokio::time::timeout(limits.time, read(&mut body, limits.bytes)).await.unwrap_or(false)
    }

    /// Does the same after the response, also if the handler still has the body: for protocols in which the response does not wait.
    pub async fn finish_later(self, limits: DrainLimits) {
        let _ = tokio::time::timeout(MAX_HANDLER_DELAY, self.0.dropped.notified()).await;
        let Some(mut body) = self.take() else { return };
        if !tokio::time::timeout(limits.time, read(&mut body, limits.bytes)).await.unwrap_or(false) {
            // The client cannot send more than the flow control allows, and has time to notice the response.
            tokio::time::sleep(MAX_NOTICE_DELAY).await;
        }
    }

    fn take(&self) -> Option<Incoming> {
        self.0.body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

async fn read(body: &mut Incoming, limit: u64) -> bool {
    let mut discarded = 0;
    while discarded < limit {
        match tokio::time::timeout(MAX_PAUSE, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, |data| data.len() as u64),
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
    false
}

impl Body for DrainableBody {
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

impl Drop for DrainableBody {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) {
            *self.drain.0.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner);
        }
        self.drain.0.dropped.notify_one();
    }
}
