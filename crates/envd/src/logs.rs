//! Log lines for the server, which reads them as JSON from one long response.
//! The buffer is limited: without a reader the oldest lines are dropped and counted. Adding a line never blocks.
//! Lines never contain output, input, environment variables or file contents.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::sync::Notify;

use crate::rest::Body;
use crate::state::{Envd, lock};

/// Maximum size of the buffered lines, bytes.
const MAX_BUFFERED: usize = 1 << 20;
/// Maximum size of a field's text, bytes; commands can be megabytes.
const MAX_FIELD: usize = 4096;

/// The log lines that the server has not read yet.
#[derive(Debug, Default)]
pub struct Logs {
    buffer: Mutex<LogBuffer>,
    added: Notify,
}

#[derive(Debug, Default)]
struct LogBuffer {
    lines: VecDeque<Bytes>,
    size: usize,
    dropped: u64,
}

/// Severity of a line.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Details.
    Debug,
    /// Events of interest to users.
    Info,
    /// Problems.
    Warn,
}

#[derive(Serialize)]
struct Line<'a> {
    /// Nanoseconds since 1970.
    at: u64,
    level: Level,
    logger: &'static str,
    message: &'a str,
    fields: Fields<'a>,
}

struct Fields<'a>(&'a [(&'static str, String)]);

impl Serialize for Fields<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, shorten(value))),
        )
    }
}

/// Returns at most [`MAX_FIELD`] bytes of a text, cut between characters.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Logs {
    /// Adds a line.
    pub fn add(&self, level: Level, logger: &'static str, message: &str, fields: &[(&'static str, String)]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let line = Line { at, level, logger, message, fields: Fields(fields) };
        let mut text = serde_json::to_vec(&line).expect("our own type has string keys only");
        text.push(b'\n');
        self.keep(text.into());
        self.added.notify_one();
    }

    fn keep(&self, line: Bytes) {
        let mut buffer = lock(&self.buffer);
        buffer.size += line.len();
        buffer.lines.push_back(line);
        while buffer.size > MAX_BUFFERED {
            let Some(oldest) = buffer.lines.pop_front() else { break };
            buffer.size -= oldest.len();
            buffer.dropped += 1;
        }
    }

    /// Waits until there are lines and takes them all.
    async fn take(&self) -> Bytes {
        loop {
            // Before the buffer is read, so that a line that is added afterwards wakes this task.
            let added = self.added.notified();
            let (lines, dropped) = {
                let mut buffer = lock(&self.buffer);
                buffer.size = 0;
                (std::mem::take(&mut buffer.lines), std::mem::take(&mut buffer.dropped))
            };
            if dropped > 0 {
                self.add(Level::Warn, "logs", "older lines were dropped", &[("count", dropped.to_string())]);
            }
            if !lines.is_empty() {
                return lines
                    .into_iter()
                    .fold(BytesMut::new(), |mut all, line| {
                        all.extend_from_slice(&line);
                        all
                    })
                    .freeze();
            }
            added.await;
        }
    }
}

/// Responds to `GET /logs` with an endless stream of the buffered lines and all later ones.
pub fn stream(envd: Arc<Envd>) -> Response<Body> {
    let mut response =
        Response::new(LogBody { envd, next: None }.map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

struct LogBody {
    envd: Arc<Envd>,
    next: Option<Pin<Box<dyn Future<Output = Bytes> + Send>>>,
}

impl http_body::Body for LogBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let envd = Arc::clone(&self.envd);
        let next = self.next.get_or_insert_with(|| Box::pin(async move { envd.logs.take().await }));
        let lines = std::task::ready!(next.as_mut().poll(context));
        self.next = None;
        Poll::Ready(Some(Ok(Frame::data(lines))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_taken_once_and_in_order() {
        let logs = Logs::default();
        logs.add(Level::Info, "a", "one", &[("pid", "7".into())]);
        logs.add(Level::Debug, "a", "two", &[]);
        let text = String::from_utf8(logs.take().await.to_vec()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["message"], "one");
        assert_eq!(lines[0]["fields"]["pid"], "7");
        assert_eq!(lines[1]["level"], "debug");
        let none = tokio::time::timeout(std::time::Duration::from_millis(20), logs.take()).await;
        assert!(none.is_err());
    }

    #[tokio::test]
    async fn without_a_reader_the_oldest_lines_are_dropped_and_counted() {
        let logs = Logs::default();
        for number in 0..1000 {
            logs.add(Level::Info, "a", &number.to_string(), &[("text", "ü".repeat(3000))]);
        }
        assert!(lock(&logs.buffer).size <= MAX_BUFFERED);
        let text = String::from_utf8(logs.take().await.to_vec()).unwrap();
        assert!(text.lines().last().unwrap().contains("\"999\""));
        let told = String::from_utf8(logs.take().await.to_vec()).unwrap();
        assert!(told.contains("dropped"), "{told}");
    }
}
