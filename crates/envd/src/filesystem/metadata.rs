//! Metadata of files: `X-Metadata-*` headers of an upload, stored as `user.e2b.*` extended attributes.
//! An upload replaces all metadata. On filesystems without extended attributes files have no metadata.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use http::HeaderMap;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use thiserror::Error;

const HEADER: &str = "x-metadata-";
const ATTRIBUTE: &str = "user.e2b.";
/// Maximum size of a key, bytes: the kernel's limit on attribute names, less the prefix.
const MAX_KEY: usize = 246;
/// Maximum size of all keys with prefix and values of a file, bytes.
const MAX_TOTAL: usize = 4096;

/// Why metadata cannot be stored.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MetadataError {
    /// A key is empty or too long.
    #[error("invalid metadata: key must have 1 to {MAX_KEY} bytes")]
    Key,
    /// A key or value is not printable ASCII.
    #[error("invalid metadata: keys and values must be printable ASCII")]
    NotPrintable,
    /// The metadata is too large in total.
    #[error("invalid metadata: more than {MAX_TOTAL} bytes in total")]
    TooLarge,
}

/// Reads the metadata of a request. The first of repeated headers counts.
pub fn from_headers(headers: &HeaderMap) -> Result<BTreeMap<String, String>, MetadataError> {
    let mut all = BTreeMap::new();
    let mut total = 0;
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(HEADER) else { continue };
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(MetadataError::Key);
        }
        let value = headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        if !value.iter().chain(key.as_bytes()).all(|byte| (0x20..=0x7e).contains(byte)) {
            return Err(MetadataError::NotPrintable);
        }
        total += ATTRIBUTE.len() + key.len() + value.len();
        all.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
    }
    if total > MAX_TOTAL { Err(MetadataError::TooLarge) } else { Ok(all) }
}

/// Replaces a file's metadata.
pub fn replace(file: &File, metadata: &BTreeMap<String, String>) -> rustix::io::Result<()> {
    for name in names(|buffer| rustix::fs::flistxattr(file, buffer)) {
        if !metadata.contains_key(&name) {
            let _ = rustix::fs::fremovexattr(file.as_fd(), format!("{ATTRIBUTE}{name}"));
        }
    }
    for (key, value) in metadata {
        let attribute = format!("{ATTRIBUTE}{key}");
        rustix::fs::fsetxattr(file, attribute, value.as_bytes(), XattrFlags::empty())?;
    }
    Ok(())
}

/// Reads the metadata of the entry at `path`; of a symbolic link itself, not of its target.
pub fn of(path: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for name in names(|buffer| rustix::fs::llistxattr(path, buffer)) {
        let mut value = vec![0; MAX_TOTAL];
        if let Ok(len) = rustix::fs::lgetxattr(path, format!("{ATTRIBUTE}{name}"), &mut value[..]) {
            value.truncate(len);
            all.insert(name, String::from_utf8_lossy(&value).into_owned());
        }
    }
    all
}

/// Lists the attributes with our prefix, without the prefix. For most files, which have none, it costs one call.
fn names(list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Vec<String> {
    let mut buffer = vec![0; 1024];
    let size = match list(&mut buffer) {
        Ok(size) => size,
        Err(Errno::RANGE) => {
            // The kernel's maximum size of the list.
            buffer.resize(64 * 1024, 0);
            list(&mut buffer).unwrap_or(0)
        }
        Err(_) => 0,
    };
    let texts = buffer[..size].split(|&byte| byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    texts.filter_map(|name| name.strip_prefix(ATTRIBUTE)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        map
    }

    #[test]
    fn reads_prefixed_headers_and_the_first_of_each() {
        let map = headers(&[("X-Metadata-Author", "me"), ("x-metadata-author", "you"), ("x-other", "1")]);
        let metadata = from_headers(&map).expect("valid");
        assert_eq!(metadata, BTreeMap::from([("author".to_owned(), "me".to_owned())]));
    }

    #[test]
    fn rejects_invalid_metadata() {
        let long = format!("x-metadata-{}", "k".repeat(247));
        assert_eq!(from_headers(&headers(&[(&long, "v")])), Err(MetadataError::Key));
        assert_eq!(
            from_headers(&headers(&[("x-metadata-k", &"v".repeat(4096))])),
            Err(MetadataError::TooLarge)
        );
        assert_eq!(from_headers(&headers(&[("x-metadata-k", "é")])), Err(MetadataError::NotPrintable));
    }

    #[test]
    fn replaces_the_whole_set() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let file = File::create(&path).expect("a file");
        let set = |pairs: &[(&str, &str)]| {
            let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            replace(&file, &map).map(|()| map)
        };
        let Ok(first) = set(&[("a", "1"), ("b", "2")]) else { return };
        assert_eq!(of(&path), first);
        let second = set(&[("b", "3")]).expect("attributes work here");
        assert_eq!(of(&path), second);
    }
}
