//! Uploads of the files of a template build. After a broken connection an upload continues from where the server is.
//! The first request is a plain `PUT`, which any server with E2B's interface accepts; only the continuation needs Cofferdam.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::templates::FilesLink;
use crate::transport::{self, address, check, unreachable};
use crate::{Client, Error, Result};

/// Maximum number of consecutive attempts without progress.
const MAX_ATTEMPTS: u32 = 8;
/// Wait after the first such attempt; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Progress of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Complete,
    /// The server has this many bytes.
    Partial(u64),
}

impl Client {
    /// Uploads an archive (tar, gzip) of `length` bytes. `open` returns the archive's bytes from an offset; it is called
    /// again after each broken connection.
    ///
    /// # Errors
    /// The link has expired, the archive is too large or cannot be read, or the server stays unreachable for some ten seconds.
    pub async fn send_files<S, E>(
        &self,
        link: &FilesLink,
        length: u64,
        mut open: impl FnMut(u64) -> io::Result<S>,
    ) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let uri: Uri = link.url.parse().map_err(|_| Error::Protocol("the link is not a URL".to_owned()))?;
        let (mut offset, mut failures, mut is_first) = (0, 0, true);
        loop {
            // A request carries at least one byte, even if it repeats the last one.
            let from = offset.min(length.saturating_sub(1));
            let contents =
                open(from).map_err(|error| Error::Config(format!("the archive cannot be read: {error}")))?;
            let mut request = Request::put(uri.clone()).header(CONTENT_LENGTH, length - from);
            if !is_first {
                let range = format!("bytes {from}-{}/{length}", length.saturating_sub(1));
                request = request.header(CONTENT_RANGE, range);
            }
            is_first = false;
            let cause = match self.put_stream(request, contents).await {
                Ok(Progress::Complete) => return Ok(()),
                Ok(Progress::Partial(_)) => {
                    Error::Protocol("the server has not received the whole archive".to_owned())
                }
                Err(error) if is_retryable(&error) => error,
                Err(error) => return Err(error),
            };
            let progress = loop {
                if failures == MAX_ATTEMPTS {
                    return Err(cause);
                }
                tokio::time::sleep(FIRST_WAIT * 2_u32.pow(failures)).await;
                failures += 1;
                match self.upload_progress(&uri).await {
                    Ok(progress) => break progress,
                    Err(error) if is_retryable(&error) => {}
                    // The server cannot continue uploads: report the first failure.
                    Err(_) => return Err(cause),
                }
            };
            match progress {
                Progress::Complete => return Ok(()),
                Progress::Partial(now) => {
                    if now > offset {
                        failures = 0;
                    }
                    offset = now;
                }
            }
        }
    }

    async fn put_stream<S, E>(&self, request: http::request::Builder, contents: S) -> Result<Progress>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let response = self.send_stream(request, contents).await?;
        progress(&response)
    }

    /// Asks how much of an upload the server has.
    async fn upload_progress(&self, uri: &Uri) -> Result<Progress> {
        let request = Request::builder()
            .method(Method::HEAD)
            .uri(uri.clone())
            .header(USER_AGENT, transport::USER_AGENT)
            .body(transport::empty_body())
            .map_err(|error| Error::Config(error.to_string()))?;
        progress(&self.rest.transport().exchange(request).await?)
    }

    /// Sends a request with a streamed body, without a time limit.
    pub(crate) async fn send_stream<S, E>(
        &self,
        request: http::request::Builder,
        contents: S,
    ) -> Result<Response<Bytes>>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let frames = contents.map(|piece| {
            piece.map(Frame::data).map_err(|error| connectrpc::ConnectError::internal(error.to_string()))
        });
        let request = request
            .header(USER_AGENT, transport::USER_AGENT)
            .body(BodyExt::boxed(StreamBody::new(frames)))
            .map_err(|error| Error::Config(error.to_string()))?;
        let address = address(request.uri());
        let response = self.rest.transport().send(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| unreachable(address, &error))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// Whether the failure was the connection's or a proxy's, so that a further attempt may succeed.
fn is_retryable(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Timeout(_) => true,
        Error::Server { code, .. } => matches!(code.as_str(), "416" | "500" | "502" | "503" | "504"),
        _ => false,
    }
}

fn progress(response: &Response<Bytes>) -> Result<Progress> {
    if response.status() != StatusCode::PERMANENT_REDIRECT {
        return check(response).map(|()| Progress::Complete);
    }
    let Some(range) = response.headers().get(RANGE) else { return Ok(Progress::Partial(0)) };
    let last = range.to_str().ok().and_then(|range| range.strip_prefix("bytes=0-"));
    let last = last.and_then(|last| last.parse::<u64>().ok()).and_then(|last| last.checked_add(1));
    last.map(Progress::Partial).ok_or_else(|| Error::Protocol("malformed Range header".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_tell_the_progress_of_an_upload() {
        let read = |status: u16, range: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(range) = range {
                response = response.header(RANGE, range);
            }
            progress(&response.body(Bytes::new()).unwrap()).ok()
        };
        assert_eq!(read(200, None), Some(Progress::Complete));
        assert_eq!(read(308, None), Some(Progress::Partial(0)));
        assert_eq!(read(308, Some("bytes=0-41")), Some(Progress::Partial(42)));
        for (status, range) in [(308, Some("bytes=5-41")), (308, Some("bytes=0-x")), (403, None), (500, None)]
        {
            assert_eq!(read(status, range), None, "{status} {range:?}");
        }
    }
}
