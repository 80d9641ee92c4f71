//! Reads a request's body in pieces, and decompresses it if it is compressed.

use std::io::Write;

use body_drain::DrainableBody;
use bytes::{Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;

use crate::rest::RestError;

/// Number of compressed bytes to decompress at a time: they may become a thousand times as many.
const SLICE: usize = 4096;

/// A reader of a request's body.
#[derive(Debug)]
pub struct BodyReader {
    body: DrainableBody,
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
    /// Compressed bytes that were received and not decompressed yet.
    waiting: Bytes,
    ended: bool,
}

impl BodyReader {
    /// Makes a reader of the body of a request with these headers.
    pub fn new(body: DrainableBody, headers: &HeaderMap) -> Result<Self, RestError> {
        let encoding = headers.get(CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?"));
        let gzip = match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => None,
            "gzip" => Some(MultiGzDecoder::new(Vec::new())),
            _ => return Err(RestError::bad_request(format!("unsupported content encoding: {encoding}"))),
        };
        Ok(Self { body, gzip, waiting: Bytes::new(), ended: false })
    }

    /// Returns the next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RestError> {
        loop {
            if self.waiting.is_empty() && !self.ended {
                match self.receive().await? {
                    Some(bytes) => self.waiting = bytes,
                    None => self.ended = true,
                }
            }
            let Some(gzip) = &mut self.gzip else {
                return Ok(Some(std::mem::take(&mut self.waiting)).filter(|bytes| !bytes.is_empty()));
            };
            let failed = |error| RestError::bad_request(format!("error decompressing request body: {error}"));
            if self.waiting.is_empty() {
                gzip.try_finish().map_err(failed)?;
            } else {
                let slice = self.waiting.split_to(self.waiting.len().min(SLICE));
                gzip.write_all(&slice).map_err(failed)?;
            }
            let plain = std::mem::take(gzip.get_mut());
            if !plain.is_empty() {
                return Ok(Some(plain.into()));
            }
            if self.ended && self.waiting.is_empty() {
                return Ok(None);
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, RestError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame
                .map_err(|error| RestError::bad_request(format!("error reading request body: {error}")))?;
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Reads and discards the rest: a client that is still sending does not read the response.
    pub async fn drain(&mut self) {
        while let Ok(Some(_)) = self.receive().await {}
    }
}

/// Reads a whole body of at most `limit` bytes.
pub async fn collect(body: DrainableBody, headers: &HeaderMap, limit: usize) -> Result<Bytes, RestError> {
    let mut reader = BodyReader::new(body, headers)?;
    let mut all = BytesMut::new();
    while let Some(bytes) = reader.next().await? {
        if all.len() + bytes.len() > limit {
            return Err(RestError::new(http::StatusCode::PAYLOAD_TOO_LARGE, "request body too large"));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}
