//! A span for every request to a sandbox, a count of them, and the latency of process starts.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::{Request, Response};
use telemetry::Outcome;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::Edge;
use crate::connection::ConnectionHandle;
use crate::proxy;
use crate::target::Address;

/// Forwards a request to a sandbox in a span, and records its status and, for a process start, its latency.
pub(crate) async fn forward(
    request: Request<Body>,
    address: Address,
    edge: &Arc<Edge>,
    connection: &ConnectionHandle,
) -> Response<Body> {
    let began = Instant::now();
    let to_envd = address.port == envd_api::PORT;
    let is_exec = to_envd && request.uri().path() == envd_api::paths::START_PROCESS;
    let span = info_span!(
        "sandbox_request", method = %request.method(), port = address.port, sandbox_id = %address.id,
        team_id = Empty, status = Empty
    );
    let response = proxy::forward(request, address, edge, connection).instrument(span.clone()).await;
    let status = response.status();
    span.record("status", status.as_u16());
    telemetry::edge_request_finished(to_envd, status.as_u16());
    if !is_exec {
        return response;
    }
    if !status.is_success() {
        telemetry::exec_answered(Outcome::Error, began.elapsed());
        return response;
    }
    response.map(|body| Body::new(FirstByteTimer { body, began: Some(began) }))
}

/// The body of the response to a process start: records the time until its first byte.
struct FirstByteTimer {
    body: Body,
    /// When the request came; `None` once the time has been recorded.
    began: Option<Instant>,
}

impl HttpBody for FirstByteTimer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled
            && let Some(began) = self.began.take()
        {
            let outcome = if matches!(frame, Some(Ok(_))) { Outcome::Ok } else { Outcome::Error };
            telemetry::exec_answered(outcome, began.elapsed());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn only_the_first_frame_is_timed() {
        let mut timer = FirstByteTimer { body: Body::from("output"), began: Some(Instant::now()) };
        let frame = poll_fn(|cx| Pin::new(&mut timer).poll_frame(cx)).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "output");
        assert!(timer.began.is_none());
        assert!(poll_fn(|cx| Pin::new(&mut timer).poll_frame(cx)).await.is_none());
    }
}
