//! Sending the files of a template build, however often the connection breaks: each time from where the server has them.
//! The first request is a plain `PUT`, which any server of E2B's interface takes; only what follows needs Cofferdam.
//! Nothing is kept between programs: an upload ends with the call.

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

/// Attempts in a row that bring the upload no further.
const MAX_ATTEMPTS: u32 = 8;
/// Wait after the first of them; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Complete,
    /// The server has so many bytes.
    Partial(u64),
}

impl Client {
    /// Sends an archive (tar, gzip) of `length` bytes where a link says. `open` gives its bytes from a place on; it is asked
    /// again whenever the connection has broken.
    ///
    /// # Errors
    /// The link has expired, the archive is too large or cannot be read, or the server stays out of reach for some ten seconds.
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
        let uri: Uri = link.url.parse().map_err(|_| Error::Protocol("the link is no URL".to_owned()))?;
        let (mut here, mut vain, mut is_first) = (0, 0, true);
        loop {
            // A request brings at least one byte, if only the last one again.
            let from = here.min(length.saturating_sub(1));
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
                Ok(Progress::Partial(_)) => Error::Protocol("the archive did not become whole".to_owned()),
                Err(error) if may_go_on(&error) => error,
                Err(error) => return Err(error),
            };
            let progress = loop {
                if vain == MAX_ATTEMPTS {
                    return Err(cause);
                }
                tokio::time::sleep(FIRST_WAIT * 2_u32.pow(vain)).await;
                vain += 1;
                match self.upload_progress(&uri).await {
                    Ok(progress) => break progress,
                    Err(error) if may_go_on(&error) => {}
                    // A server that does not know how to go on: what happened first is what there is to say.
                    Err(_) => return Err(cause),
                }
            };
            match progress {
                Progress::Complete => return Ok(()),
                Progress::Partial(now) => {
                    if now > here {
                        vain = 0;
                    }
                    here = now;
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

    /// How much of an upload the server has.
    async fn upload_progress(&self, uri: &Uri) -> Result<Progress> {
        let request = Request::builder()
            .method(Method::HEAD)
            .uri(uri.clone())
            .header(USER_AGENT, transport::USER_AGENT)
            .body(transport::empty_body())
            .map_err(|error| Error::Config(error.to_string()))?;
        progress(&self.rest.transport().exchange(request).await?)
    }

    /// As long as it takes: the limit for requests is for small ones.
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

/// Whether the connection or what stands between is to blame, and not what was sent.
fn may_go_on(error: &Error) -> bool {
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
    last.map(Progress::Partial).ok_or_else(|| Error::Protocol("a Range that cannot be read".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_how_far_an_upload_is() {
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
