//! An answer's body on its way to the client.
//! It ends well only if the server inside ended it well while its sandbox was alive; otherwise the client's stream is reset.
//! Its connection goes back to the pool once the last byte is through.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use control::Live;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use crate::connection::Resetter;
use crate::upstream::{Pools, Sender};

/// The sandbox ended, or its server broke off.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox's answer was cut off")]
pub(crate) struct CutOff;

/// How a client's stream is cut.
enum Cut {
    /// HTTP/1.1: the connection is reset, by a task of its own, since a body is not asked for more while a slow client
    /// has not taken what there is.
    Connection { resetter: Resetter, _watcher: AbortOnDropHandle<()> },
    /// HTTP/2: an error of the body resets its stream and no other.
    Stream { ended: Pin<Box<dyn Future<Output = ()> + Send>> },
}

/// The body.
pub(crate) struct GuardedBody {
    inner: Incoming,
    live: Arc<Live>,
    cut: Cut,
    pools: Pools,
    sender: Option<Sender>,
    finished: bool,
}

impl GuardedBody {
    /// Guards a body. `resetter` is for connections that carry one answer at a time.
    pub(crate) fn new(
        inner: Incoming,
        live: Arc<Live>,
        resetter: Option<Resetter>,
        pools: Pools,
        sender: Option<Sender>,
    ) -> Self {
        let waiting = Arc::clone(&live);
        let cut = match resetter {
            Some(resetter) => {
                let to_reset = resetter.clone();
                let watcher = tokio::spawn(async move {
                    waiting.wait_ended().await;
                    to_reset.reset();
                });
                Cut::Connection { resetter, _watcher: AbortOnDropHandle::new(watcher) }
            }
            None => Cut::Stream { ended: Box::pin(async move { waiting.wait_ended().await }) },
        };
        Self { inner, live, cut, pools, sender, finished: false }
    }

    fn cut_off<T>(&mut self) -> Poll<Option<Result<T, CutOff>>> {
        self.sender = None;
        match &self.cut {
            Cut::Connection { resetter, .. } => {
                resetter.reset();
                // The connection is dropped before it asks again.
                Poll::Pending
            }
            Cut::Stream { .. } => Poll::Ready(Some(Err(CutOff))),
        }
    }
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if let Cut::Stream { ended } = &mut self.cut
            && ended.as_mut().poll(cx).is_ready()
        {
            return self.cut_off();
        }
        loop {
            return match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                // Empty frames are counted against us by HTTP/2 clients.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
                Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => {
                    tracing::debug!(sandbox_id = %self.live.id, %error, "an answer broke off");
                    self.cut_off()
                }
                // A body without a length ends with its connection, also when that died with the sandbox.
                None if self.live.has_ended() => self.cut_off(),
                None => {
                    self.finished = true;
                    Poll::Ready(None)
                }
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for GuardedBody {
    fn drop(&mut self) {
        // A body of known length is not asked again after its last byte.
        if (self.finished || self.inner.is_end_stream())
            && let Some(sender) = self.sender.take()
        {
            self.pools.put(&self.live, sender);
        }
    }
}
