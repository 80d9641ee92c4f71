//! The body of a sandbox's response on its way to the client.
//! It ends cleanly only if the server in the sandbox ended it cleanly while the sandbox was alive; otherwise the
//! client's stream is reset. After the last byte a reusable connection to envd goes back to the idle ones.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use control::RunningSandbox;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use crate::closing::Resetter;
use crate::upstream::{IdleConnections, Sender};

/// The sandbox ended, or its server broke the response off.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox's response was cut off")]
pub(crate) struct CutOffError;

/// How the client's stream is reset.
enum Reset {
    /// HTTP/1.1: a task resets the connection, since a body is not polled while a slow client has not taken the data
    /// that is buffered.
    Connection { resetter: Resetter, _watcher: AbortOnDropHandle<()> },
    /// HTTP/2: an error of the body resets its stream only.
    Stream { ended: Pin<Box<dyn Future<Output = ()> + Send>> },
}

/// A response body that is reset when its sandbox ends.
pub(crate) struct ResponseBody {
    inner: Incoming,
    live: Arc<RunningSandbox>,
    reset: Reset,
    idle: IdleConnections,
    sender: Option<Sender>,
    finished: bool,
}

impl ResponseBody {
    /// Wraps the body `inner` of a response. `resetter` is given for HTTP/1.1 connections, which carry one response at a time.
    pub(crate) fn new(
        inner: Incoming,
        live: Arc<RunningSandbox>,
        resetter: Option<Resetter>,
        idle: IdleConnections,
        sender: Option<Sender>,
    ) -> Self {
        let watched = Arc::clone(&live);
        let reset = match resetter {
            Some(resetter) => {
                let to_reset = resetter.clone();
                let watcher = tokio::spawn(async move {
                    watched.wait_ended().await;
                    to_reset.reset();
                });
                Reset::Connection { resetter, _watcher: AbortOnDropHandle::new(watcher) }
            }
            None => Reset::Stream { ended: Box::pin(async move { watched.wait_ended().await }) },
        };
        Self { inner, live, reset, idle, sender, finished: false }
    }

    fn cut_off<T>(&mut self) -> Poll<Option<Result<T, CutOffError>>> {
        self.sender = None;
        match &self.reset {
            Reset::Connection { resetter, .. } => {
                resetter.reset();
                // The connection is dropped before it polls again.
                Poll::Pending
            }
            Reset::Stream { .. } => Poll::Ready(Some(Err(CutOffError))),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = CutOffError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOffError>>> {
        if let Reset::Stream { ended } = &mut self.reset
            && ended.as_mut().poll(cx).is_ready()
        {
            return self.cut_off();
        }
        loop {
            return match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                // HTTP/2 clients count empty frames as an attack.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
                Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => {
                    tracing::debug!(sandbox_id = %self.live.id, %error, "a sandbox's response broke off");
                    self.cut_off()
                }
                // A body without a length ends with its connection, also when the connection ended with the sandbox.
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

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body of known length is not polled again after its last byte.
        if (self.finished || self.inner.is_end_stream())
            && let Some(sender) = self.sender.take()
        {
            self.idle.put(&self.live, sender);
        }
    }
}
