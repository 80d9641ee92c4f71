//! A streaming parser of `multipart/form-data`: parts with their headers, and their contents in pieces.
//! Of the headers only the field's name and the file's name, with its directories, are parsed.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use crate::rest::RestError;

/// Maximum size of the headers of a part, bytes.
const MAX_HEADERS: usize = 64 * 1024;

/// Number of bytes that are joined to the rest of the piece before.
const JOINED: usize = 4096;

/// A source of bytes.
pub trait Pieces {
    /// Returns the next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, RestError>> + Send;
}

impl Pieces for crate::rest::body_reader::BodyReader {
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, RestError>> + Send {
        Self::next(self)
    }
}

/// The parsed headers of a part.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Name of the field.
    pub name: String,
    /// Name of the file with its directories, if there is one.
    pub filename: Option<String>,
}

/// A stream of parts.
#[derive(Debug)]
pub struct Multipart<R> {
    reader: R,
    /// Bytes that are being parsed.
    buffer: Bytes,
    /// Bytes that were received after them.
    behind: Bytes,
    /// Line break, two dashes, boundary.
    delimiter: Vec<u8>,
    in_part: bool,
    ended: bool,
}

impl<R: Pieces> Multipart<R> {
    /// Makes a stream with the boundary of `content_type`.
    pub fn new(reader: R, content_type: &str) -> Result<Self, RestError> {
        let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty());
        let boundary =
            boundary.ok_or_else(|| RestError::bad_request("no multipart boundary param in Content-Type"))?;
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first delimiter may be at the very start, without a line break. A preamble before it is
        // skipped like a part.
        let buffer = Bytes::from_static(b"\r\n");
        Ok(Self { reader, buffer, behind: Bytes::new(), delimiter, in_part: true, ended: false })
    }

    /// Skips the rest of this part and returns the next part.
    pub async fn next_part(&mut self) -> Result<Option<Part>, RestError> {
        if self.ended {
            return Ok(None);
        }
        while self.chunk().await?.is_some() {}
        // After the delimiter follow two dashes at the end of the form, else a line break and headers.
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        if self.buffer.starts_with(b"--") {
            self.ended = true;
            return Ok(None);
        }
        let mut searched = 0;
        let end = loop {
            // The search begins at the line break: a part may have no headers.
            if let Some(at) = memmem::find(&self.buffer[searched..], b"\r\n\r\n") {
                break searched + at;
            }
            searched = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > MAX_HEADERS {
                return Err(RestError::bad_request("multipart: part headers too large"));
            }
            self.fill().await?;
        };
        let headers = self.buffer.split_to(end + 4);
        self.in_part = true;
        Ok(Some(part(&String::from_utf8_lossy(&headers))))
    }

    /// Returns the next bytes of this part; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RestError> {
        while self.in_part {
            if let Some(at) = memmem::find(&self.buffer, &self.delimiter) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at)));
                }
                let _ = self.buffer.split_to(self.delimiter.len());
                self.in_part = false;
                break;
            }
            // Bytes that cannot be the beginning of a delimiter are content: nearly always all of them.
            let sure = self.buffer.len() - delimiter_start(&self.buffer, &self.delimiter);
            if sure > 0 {
                return Ok(Some(self.buffer.split_to(sure)));
            }
            self.fill().await?;
        }
        Ok(None)
    }

    /// Adds to the buffer. Large pieces are not copied: only where headers or a delimiter may extend
    /// across two of them, the rest of the first is joined with the beginning of the second.
    async fn fill(&mut self) -> Result<(), RestError> {
        if self.behind.is_empty() {
            let next = self.reader.next().await?;
            self.behind = next.ok_or_else(|| RestError::bad_request("multipart: unexpected end of body"))?;
        }
        if self.buffer.is_empty() {
            self.buffer = std::mem::take(&mut self.behind);
            return Ok(());
        }
        let some = self.behind.split_to(self.behind.len().min(JOINED.max(self.delimiter.len())));
        // In place if possible: headers may arrive byte by byte.
        let left = std::mem::take(&mut self.buffer);
        let mut joined = left.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        joined.extend_from_slice(&some);
        self.buffer = joined.freeze();
        Ok(())
    }

    /// Returns the source, to read the rest of it.
    pub fn into_inner(self) -> R {
        self.reader
    }
}

/// Counts the bytes at the end of `content` that may be the beginning of a delimiter. The only carriage return of
/// a delimiter is its first byte, because the header that names the boundary cannot contain one.
fn delimiter_start(content: &[u8], delimiter: &[u8]) -> usize {
    let end = &content[content.len().saturating_sub(delimiter.len() - 1)..];
    match memchr::memrchr(b'\r', end) {
        Some(at) if delimiter.starts_with(&end[at..]) => end.len() - at,
        _ => 0,
    }
}

fn part(headers: &str) -> Part {
    for line in headers.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            // As upstream does, `%22` and the like stay: they may be the name's own.
            let filename = extended(value).or_else(|| parameter(value, "filename"));
            return Part { name: parameter(value, "name").unwrap_or_default(), filename };
        }
    }
    Part::default()
}

/// Returns a parameter of a header such as `form-data; name="a"; filename="b"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start());
        if name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// Splits off a token or quoted string. Returns its value and the rest.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            // Only these are escaped; a backslash before other characters is a backslash.
            '\\' if quoted[at + 1..].starts_with(['"', '\\']) => value.extend(letters.next().map(|(_, l)| l)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

/// Decodes `filename*=utf-8''…`.
fn extended(header: &str) -> Option<String> {
    let value = parameter(header, "filename*")?;
    let encoded = value.split_once("''").map_or(value.as_str(), |(_, encoded)| encoded);
    Some(percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Given(std::vec::IntoIter<Bytes>);

    impl Pieces for Given {
        async fn next(&mut self) -> Result<Option<Bytes>, RestError> {
            Ok(self.0.next())
        }
    }

    fn read(body: &[u8], piece: usize) -> Result<Vec<(Part, Vec<u8>)>, RestError> {
        let pieces: Vec<Bytes> = body.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect();
        let mut multipart = Multipart::new(Given(pieces.into_iter()), "multipart/form-data; boundary=XX")?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut parts = Vec::new();
            while let Some(part) = multipart.next_part().await? {
                let mut content = Vec::new();
                while let Some(bytes) = multipart.chunk().await? {
                    content.extend_from_slice(&bytes);
                }
                parts.push((part, content));
            }
            Ok(parts)
        })
    }

    fn disposition(text: &str) -> Part {
        part(&format!("\r\nContent-Disposition: form-data; {text}\r\n\r\n"))
    }

    #[test]
    fn reads_parts_in_any_pieces() {
        let body = b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/a/b.txt\"\r\n\r\none\r\n--X\r\n\
            --XX\r\ncontent-disposition: form-data; name=file\r\nX: y\r\n\r\n\r\n--XX--\r\nrest";
        for piece in 1..body.len() {
            let parts = read(body, piece).expect("parsed");
            assert_eq!(parts.len(), 2, "{piece}");
            assert_eq!(parts[0].0, Part { name: "file".into(), filename: Some("/a/b.txt".into()) });
            assert_eq!(parts[0].1, b"one\r\n--X");
            assert_eq!(parts[1], (Part { name: "file".into(), filename: None }, Vec::new()));
        }
    }

    #[test]
    fn large_pieces_are_not_copied() {
        let head = b"--XX\r\nContent-Disposition: form-data; name=file\r\n\r\n";
        let large = Bytes::from(vec![7u8; 1 << 18]);
        let pieces = vec![
            Bytes::from_static(head),
            large.clone(),
            large.clone(),
            Bytes::from_static(b"\r\n-"),
            large.clone(),
            Bytes::from_static(b"\r"),
            Bytes::from_static(b"\n--X"),
            Bytes::from_static(b"X--"),
        ];
        let mut multipart = Multipart::new(Given(pieces.into_iter()), "multipart/form-data; boundary=XX")
            .expect("a boundary");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let chunks = runtime.block_on(async {
            multipart.next_part().await.expect("parsed").expect("a part");
            let mut chunks = Vec::new();
            while let Some(chunk) = multipart.chunk().await.expect("parsed") {
                chunks.push(chunk);
            }
            assert_eq!(multipart.next_part().await.expect("parsed"), None);
            chunks
        });
        assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), 3 * large.len() + 3);
        let whole = chunks.iter().filter(|chunk| chunk.as_ptr() == large.as_ptr()).count();
        assert_eq!(whole, 2, "only the piece after a possible delimiter is split");
    }

    #[test]
    fn names_are_decoded() {
        assert_eq!(
            disposition("name=\"file\"; filename=\"a;b=\\\"c\\\".txt\"").filename.as_deref(),
            Some("a;b=\"c\".txt")
        );
        for kept in ["a%22b%0A%0D", "a\tb", "100%"] {
            let header = format!("name=file; filename=\"{kept}\"");
            assert_eq!(disposition(&header).filename.as_deref(), Some(kept));
        }
        assert_eq!(
            disposition("filename*=utf-8''%C3%A4; name=\"file\""),
            Part { name: "file".into(), filename: Some("ä".into()) }
        );
    }

    #[test]
    fn an_early_end_is_an_error() {
        assert!(read(b"--XX\r\nContent-Disposition: form-data; name=file\r\n\r\nabc", 7).is_err());
        assert!(read(b"", 1).is_err());
    }

    proptest! {
        #[test]
        fn content_survives(content: Vec<u8>, piece in 1usize..64) {
            prop_assume!(memmem::find(&content, b"\r\n--XX").is_none());
            let body = [b"--XX\r\nContent-Disposition: form-data; name=file\r\n\r\n", &content[..], b"\r\n--XX--"].concat();
            let parts = read(&body, piece).expect("parsed");
            prop_assert_eq!(&parts[0].1, &content);
        }

        #[test]
        fn malformed_input_does_not_panic(body: Vec<u8>, header in ".*", piece in 1usize..64) {
            let _ = read(&body, piece);
            let _ = part(&header);
        }
    }
}
