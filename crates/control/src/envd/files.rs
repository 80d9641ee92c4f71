//! Uploads into a sandbox: `POST /files` of envd, with a file of the host as the request's body.

use std::path::Path;

use bytes::Bytes;
use envd_api::{headers, paths};
use futures::TryStreamExt;
use http::{Request, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{EnvdError, exchange, whole};

/// Bytes read from the file at once.
const CHUNK: usize = 256 << 10;

/// Copies the host's file `from` to `to` in the sandbox, where it belongs to `user`.
///
/// # Errors
/// The file cannot be read, envd refused it, or the sandbox ended meanwhile.
pub(crate) async fn upload(
    sandbox: &dyn engine::Sandbox,
    token: &str,
    user: &str,
    from: &Path,
    to: &str,
) -> Result<(), EnvdError> {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let file = tokio::fs::File::open(from).await?;
    let size = file.metadata().await?.len();
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pieces = ReaderStream::with_capacity(file, CHUNK).map_ok(Frame::<Bytes>::data);
    let request = Request::post(format!("{}?path={}&username={}", paths::FILES, encode(to), encode(user)))
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size)
        .header(headers::ACCESS_TOKEN, token)
        .body(Box::pin(StreamBody::new(pieces)))
        .map_err(|_| EnvdError::Response)?;
    let response = exchange(sandbox, request, whole).await?;
    if response.status().is_success() {
        return Ok(());
    }
    match serde_json::from_slice::<Refusal>(response.body()) {
        Ok(Refusal { message }) => Err(EnvdError::Refused { code: response.status().to_string(), message }),
        Err(_) => Err(EnvdError::Status(response.status())),
    }
}
