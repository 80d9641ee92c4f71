//! Uploads into a sandbox: one file as the request's body, read from the host's disk as it goes out.
//! envd writes it as the user that is named, like every upload.
//! Protocol: envd REST `POST /files`.

use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Request, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{EnvdError, converse, whole};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Copies the host's file `from` to `to` in the sandbox, as `user`.
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
    let length = file.metadata().await?.len();
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pieces = ReaderStream::with_capacity(file, CHUNK).map_ok(Frame::<Bytes>::data);
    let request = Request::post(format!("/files?path={}&username={}", encode(to), encode(user)))
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .header("x-access-token", token)
        .body(Box::pin(StreamBody::new(pieces)))
        .map_err(|_| EnvdError::Answer)?;
    let answer = converse(sandbox, request, whole).await?;
    if answer.status().is_success() {
        return Ok(());
    }
    match serde_json::from_slice::<Refusal>(answer.body()) {
        Ok(Refusal { message }) => Err(EnvdError::Refused { code: answer.status().to_string(), message }),
        Err(_) => Err(EnvdError::Status(answer.status())),
    }
}
