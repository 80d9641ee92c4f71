//! Fetches a sandbox's lines for as long as it lives: one response that its agent keeps open.
//! A broken connection is made anew; the agent keeps lines meanwhile, within its bounds.
//! An agent that has no logs is left alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{Book, LogLine};
use crate::Control;
use crate::envd::{self, EnvdError};
use crate::sandboxes::running::Live;

/// Longest line taken from an agent; longer ones are dropped.
const LONGEST: usize = 192 << 10;
const MAX_FIELDS: usize = 32;
/// Bytes a second that an agent may log for long; short bursts may be larger.
const RATE: usize = 1 << 20;
/// How long to leave an agent alone that has broken off.
const PAUSE: Duration = Duration::from_secs(1);

impl Control {
    /// Follows a sandbox's log to its end.
    pub(crate) async fn follow_logs(self: &Arc<Self>, live: &Arc<Live>) {
        let Some(book) = self.logs.clone() else { return };
        loop {
            tokio::select! {
                () = live.wait_ended() => return,
                answer = self.follow_once(live, &book) => match answer {
                    Err(EnvdError::Status(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)) => return,
                    Err(error) => tracing::debug!(sandbox_id = %live.id, %error, "a log broke off"),
                    Ok(()) => {}
                },
            }
            tokio::select! {
                () = live.wait_ended() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow_once(&self, live: &Arc<Live>, book: &Arc<Book>) -> Result<(), EnvdError> {
        let token = self.envd_token(&live.id);
        envd::stream(&*live.engine, envd_api::paths::LOGS, &token, |body| keep_lines(body, live, book)).await
    }
}

async fn keep_lines(mut body: Incoming, live: &Arc<Live>, book: &Arc<Book>) -> Result<(), EnvdError> {
    let mut pending = BytesMut::new();
    let (mut window, mut taken) = (Instant::now(), 0usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        taken += data.len();
        if taken > RATE {
            // The agent keeps what we do not read, within its bounds.
            tokio::time::sleep_until(window + Duration::from_secs(1)).await;
            (window, taken) = (Instant::now(), 0);
        }
        pending.extend_from_slice(&data);
        let mut lines = Vec::new();
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            lines.extend(accept(&pending.split_to(end + 1)));
        }
        if pending.len() > LONGEST {
            pending.clear();
        }
        let (book, live) = (Arc::clone(book), Arc::clone(live));
        // Waiting for the disk here is what slows an agent that talks too much down.
        let _ = tokio::task::spawn_blocking(move || book.append(live.team, live.id.as_str(), &lines)).await;
    }
    Ok(())
}

/// A line from inside a sandbox, within bounds.
fn accept(text: &[u8]) -> Option<LogLine> {
    if text.len() > LONGEST {
        return None;
    }
    let mut line: LogLine = serde_json::from_slice(text).ok()?;
    while line.fields.len() > MAX_FIELDS {
        line.fields.pop_last();
    }
    Some(line)
}
