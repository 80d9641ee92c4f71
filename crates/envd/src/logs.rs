//! What happens in the sandbox, as JSON lines for the server, which fetches them over one long response.
//! The buffer is bounded: without a reader the oldest lines go first and their number is told. Nobody ever waits.
//! Lines say who did what; they never hold output, input, environment or file content.

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

/// Bytes of lines kept for a reader that is not there.
const MOST: usize = 1 << 20;
/// Longest text in a field; commands can be megabytes.
const LONGEST: usize = 4096;

/// The buffer.
#[derive(Debug, Default)]
pub struct Logs {
    kept: Mutex<Kept>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Bytes>,
    size: usize,
    dropped: u64,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everyday detail.
    Debug,
    /// What one wants to see.
    Info,
    /// What one should see.
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

/// At most [`LONGEST`] bytes, cut between characters.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
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
        self.news.notify_one();
    }

    fn keep(&self, line: Bytes) {
        let mut kept = lock(&self.kept);
        kept.size += line.len();
        kept.lines.push_back(line);
        while kept.size > MOST {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.size -= oldest.len();
            kept.dropped += 1;
        }
    }

    /// Waits until there are lines and takes all of them.
    async fn take(&self) -> Bytes {
        loop {
            // Before the look, so that a line added in between wakes us.
            let news = self.news.notified();
            let (lines, dropped) = {
                let mut kept = lock(&self.kept);
                kept.size = 0;
                (std::mem::take(&mut kept.lines), std::mem::take(&mut kept.dropped))
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
            news.await;
        }
    }
}

/// `GET /logs`: lines from now on, and those still in the buffer, for as long as the reader stays.
pub fn stream(envd: Arc<Envd>) -> Response<Body> {
    let mut response =
        Response::new(Lines { envd, next: None }.map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

struct Lines {
    envd: Arc<Envd>,
    next: Option<Pin<Box<dyn Future<Output = Bytes> + Send>>>,
}

impl http_body::Body for Lines {
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
    async fn without_a_reader_the_oldest_go_and_are_counted() {
        let logs = Logs::default();
        for number in 0..1000 {
            logs.add(Level::Info, "a", &number.to_string(), &[("text", "ü".repeat(3000))]);
        }
        assert!(lock(&logs.kept).size <= MOST);
        let text = String::from_utf8(logs.take().await.to_vec()).unwrap();
        assert!(text.lines().last().unwrap().contains("\"999\""));
        let told = String::from_utf8(logs.take().await.to_vec()).unwrap();
        assert!(told.contains("dropped"), "{told}");
    }
}
