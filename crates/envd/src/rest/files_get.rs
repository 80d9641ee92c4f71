//! `GET /files`: the contents of one file, whole or in part, optionally compressed.
//! Small files are opened and read on the same blocking thread, with one switch of threads.
//! Files of size 0, like those in /proc, are read to their end.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustix::io::Errno;

use crate::filesystem::ops::error_text;
use crate::identity::{Identity, is_denial};
use crate::rest::accept_encoding::{self, Encoding};
use crate::rest::conditions::{self, Decision};
use crate::rest::file_body::{FileBody, FileReader};
use crate::rest::{Body, RestError, acting, full};
use crate::users::User;

/// Characters that must be encoded in a file name in a header.
const NAME: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'\'').add(b'(').add(b')').add(b'*').add(b';').add(b',');

/// Responds with the file at `path`, if the user may read it.
pub async fn get(path: PathBuf, user: User, headers: &HeaderMap) -> Result<Response<Body>, RestError> {
    let encoding = if conditions::any(headers) {
        if !accept_encoding::allows_identity(headers) {
            let message = "identity encoding not acceptable for Range or conditional request";
            return Err(RestError::new(StatusCode::NOT_ACCEPTABLE, message));
        }
        Encoding::Identity
    } else {
        accept_encoding::choose(headers)
    };
    if encoding == Encoding::None {
        let message = "no acceptable encoding found, supported: [gzip]";
        return Err(RestError::new(StatusCode::NOT_ACCEPTABLE, message));
    }
    let headers = headers.clone();
    let respond = move || {
        let identity = Identity::of(&user);
        acting(&identity, || respond(&path, &identity, &headers, encoding))
    };
    tokio::task::spawn_blocking(respond).await?
}

fn respond(
    path: &Path,
    identity: &Identity,
    request: &HeaderMap,
    encoding: Encoding,
) -> Result<Response<Body>, RestError> {
    let (mut file, meta) = open(path, identity)?;
    let etag = format!("\"{:x}-{:x}\"", modified_nanos(&meta), meta.len());
    let modified = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
    let decision = match encoding {
        Encoding::Gzip => Decision::Whole,
        _ => conditions::decide(request, &etag, modified, meta.len()),
    };
    let failed = |error: io::Error| {
        RestError::internal(format!("error reading file '{}': {}", path.display(), error_text(&error)))
    };
    let (status, start, end) = match decision {
        // The size of files like those in /proc is not known.
        Decision::Whole if meta.len() == 0 => (StatusCode::OK, 0, None),
        Decision::Whole => (StatusCode::OK, 0, Some(meta.len())),
        Decision::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start, Some(end)),
        Decision::NotModified => return Ok(bare(StatusCode::NOT_MODIFIED, &etag, None)),
        Decision::PreconditionFailed => return Ok(bare(StatusCode::PRECONDITION_FAILED, &etag, None)),
        Decision::NoSuchRange => return Ok(bare(StatusCode::RANGE_NOT_SATISFIABLE, &etag, Some(meta.len()))),
    };
    if start > 0 {
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
    }
    let mut source = FileReader::new(file, end.map(|end| end - start));
    let first = source.read().map_err(failed)?;
    let content_type = content_type(path, if start == 0 { &first } else { &[] });

    let (body, gzipped) = if encoding == Encoding::Gzip {
        (gzip_body(path, identity, meta.len()), true)
    } else {
        (Ok(plain_body(first, source, end.map(|end| end - start))), false)
    };
    let mut response = Response::new(body?);
    *response.status_mut() = status;
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(CONTENT_TYPE, content_type);
    set(CONTENT_DISPOSITION, disposition(path));
    set(LAST_MODIFIED, httpdate::fmt_http_date(modified));
    set(VARY, "Accept-Encoding".to_owned());
    if gzipped {
        set(CONTENT_ENCODING, "gzip".to_owned());
        return Ok(response);
    }
    set(ACCEPT_RANGES, "bytes".to_owned());
    set(ETAG, etag);
    if let (StatusCode::PARTIAL_CONTENT, Some(end)) = (status, end) {
        set(CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, meta.len()));
    }
    Ok(response)
}

fn open(path: &Path, identity: &Identity) -> Result<(File, Metadata), RestError> {
    let shown = path.display();
    let failed = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => {
            RestError::new(StatusCode::NOT_FOUND, format!("path '{shown}' does not exist"))
        }
        Some(Errno::NXIO) => RestError::bad_request(format!("path '{shown}' is not a regular file")),
        Some(error) if is_denial(error) => {
            RestError::denied(&format!("error opening file '{shown}'"), identity)
        }
        _ => RestError::internal(format!("error opening file '{shown}': {}", error_text(&error))),
    };
    // Nonblocking: a pipe without a writer must not block a thread.
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return Err(RestError::bad_request(format!("path '{shown}' is a directory")));
    }
    if !meta.is_file() {
        return Err(RestError::bad_request(format!("path '{shown}' is not a regular file")));
    }
    Ok((file, meta))
}

fn plain_body(first: Bytes, source: FileReader, length: Option<u64>) -> Body {
    let read = first.len() as u64;
    let at_end = first.is_empty() || (length.is_none() && read < crate::rest::file_body::PIECE as u64);
    match length {
        Some(length) if read >= length => full(first),
        None if at_end => full(first),
        length => FileBody::new(Some(first), source, length).boxed_unsync(),
    }
}

/// Opens the file again, since the piece that was read to determine the type has to be compressed too.
fn gzip_body(path: &Path, identity: &Identity, size: u64) -> Result<Body, RestError> {
    let (file, _) = open(path, identity)?;
    let size = Some(size).filter(|&size| size > 0);
    Ok(FileBody::new(None, FileReader::new(file, size).gzip(), None).boxed_unsync())
}

fn bare(status: StatusCode, etag: &str, size: Option<u64>) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    if let Some(Ok(range)) = size.map(|size| HeaderValue::from_str(&format!("bytes */{size}"))) {
        response.headers_mut().insert(CONTENT_RANGE, range);
    }
    response
}

fn modified_nanos(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

fn disposition(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    if !name.is_empty() && name.bytes().all(token) {
        return format!("inline; filename={name}");
    }
    if name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        return format!("inline; filename=\"{quoted}\"");
    }
    format!("inline; filename*=utf-8''{}", utf8_percent_encode(&name, NAME))
}

/// Returns the content type by the file name's extension, else by the first bytes.
fn content_type(path: &Path, first: &[u8]) -> String {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("").to_ascii_lowercase();
    let known = match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "avif" => "image/avif",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let head = &first[..first.len().min(512)];
    let is_text = !head.iter().any(|&byte| byte < 0x20 && !b"\t\n\x0c\r\x1b".contains(&byte));
    if is_text { "text/plain; charset=utf-8" } else { "application/octet-stream" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_needed() {
        let of = |name: &str| disposition(&Path::new("/d").join(name));
        assert_eq!(of("a.txt"), "inline; filename=a.txt");
        assert_eq!(of("a b\".txt"), "inline; filename=\"a b\\\".txt\"");
        assert_eq!(of("ä\n"), "inline; filename*=utf-8''%C3%A4%0A");
    }

    #[test]
    fn types_come_from_the_name_or_the_content() {
        assert_eq!(content_type(Path::new("a.HTML"), b""), "text/html; charset=utf-8");
        assert_eq!(content_type(Path::new("a"), b"text\n"), "text/plain; charset=utf-8");
        assert_eq!(content_type(Path::new("a"), b"\x7fELF\x02\x01\x01\0"), "application/octet-stream");
    }
}
