//! `POST /files`: uploads one file as the body itself, or any number of files as parts of a form.
//! Files are written as they arrive. Files that were written before a failure are kept.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use body_drain::DrainableBody;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use crate::alloc;
use crate::filesystem::metadata;
use crate::paths;
use crate::rest::body_reader::BodyReader;
use crate::rest::file_writer::{FileWriter, Target};
use crate::rest::multipart::Multipart;
use crate::rest::{Body, RestError, json};
use crate::users::User;

/// How long the rest of a body that will not be stored is read.
const DRAIN: Duration = Duration::from_secs(60);

/// User and destination of an upload.
#[derive(Debug)]
pub struct Upload {
    /// Owner of the files; relative paths start at the user's home.
    pub user: User,
    /// Path of the query, not resolved.
    pub path: Option<String>,
    /// Directory that an empty path means.
    pub workdir: Option<String>,
    /// Whether a signed link authorizes the upload, and nothing else.
    pub by_link: bool,
}

#[derive(Serialize)]
struct Written {
    name: String,
    path: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// Writes the files of a request.
pub async fn post(
    upload: Upload,
    headers: &HeaderMap,
    body: DrainableBody,
) -> Result<Response<Body>, RestError> {
    let metadata =
        metadata::from_headers(headers).map_err(|error| RestError::bad_request(error.to_string()))?;
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let mut reader = BodyReader::new(body, headers)?;
    let result = if kind.starts_with("multipart/") {
        let mut parts = Multipart::new(reader, &content_type)?;
        let result = form(&upload, &metadata, &mut parts).await;
        reader = parts.into_inner();
        result
    } else if kind == "application/octet-stream" {
        raw(&upload, &metadata, length(headers), &mut reader).await
    } else {
        Err(RestError::bad_request(format!("unsupported content type: {content_type}")))
    };
    // There may be further bytes after the last part of a form.
    let _ = tokio::time::timeout(DRAIN, reader.drain()).await;
    alloc::trim();
    let paths = result?;
    let written: Vec<Written> = paths.iter().map(|path| describe(path, &metadata)).collect();
    Ok(json(&written))
}

/// Returns the `Content-Length`, if it is the size of the file.
fn length(headers: &HeaderMap) -> Option<u64> {
    if headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn raw(
    upload: &Upload,
    metadata: &BTreeMap<String, String>,
    length: Option<u64>,
    reader: &mut BodyReader,
) -> Result<Vec<PathBuf>, RestError> {
    let path = upload.path.as_deref().filter(|path| !path.is_empty());
    let path =
        path.ok_or_else(|| RestError::bad_request("path query parameter is required for raw body upload"))?;
    let path = resolve(upload, path)?;
    let mut writer = FileWriter::new(target(upload, &path, metadata, length));
    while let Some(bytes) = reader.next().await? {
        writer.push(bytes).await?;
    }
    writer.finish().await?;
    Ok(vec![path])
}

async fn form(
    upload: &Upload,
    metadata: &BTreeMap<String, String>,
    parts: &mut Multipart<BodyReader>,
) -> Result<Vec<PathBuf>, RestError> {
    let mut paths = Vec::new();
    let mut seen = HashSet::new();
    while let Some(part) = parts.next_part().await? {
        if part.name != "file" {
            continue;
        }
        let named = upload.path.as_deref().filter(|path| !path.is_empty()).or(part.filename.as_deref());
        let named = named.filter(|name| !name.is_empty());
        let path = resolve(
            upload,
            named.ok_or_else(|| RestError::bad_request("a file part has neither path nor filename"))?,
        )?;
        let confined_to = confine(upload, &path)?;
        if !seen.insert(path.clone()) {
            return Err(RestError::bad_request(format!(
                "you cannot upload multiple files to the same path '{}' in one upload request, \
                 only the first specified file was uploaded",
                path.display()
            )));
        }
        let target = Target { confined_to, ..target(upload, &path, metadata, None) };
        let mut writer = FileWriter::new(target);
        while let Some(bytes) = parts.chunk().await? {
            writer.push(bytes).await?;
        }
        writer.finish().await?;
        paths.push(path);
    }
    Ok(paths)
}

fn resolve(upload: &Upload, path: &str) -> Result<PathBuf, RestError> {
    Ok(paths::resolve(path, &upload.user.home, upload.workdir.as_deref())?)
}

/// Returns the directory that a part's path must not leave: the signature of a link without a path covers no other name.
fn confine(upload: &Upload, path: &Path) -> Result<Option<PathBuf>, RestError> {
    if !upload.by_link || upload.path.as_deref().is_some_and(|path| !path.is_empty()) {
        return Ok(None);
    }
    let home = paths::clean(&upload.user.home);
    let bases = [home.clone(), resolve(upload, "")?];
    let base = bases.into_iter().find(|base| path != base && path.starts_with(base));
    let refused = || {
        let message = format!("a link without a path may only upload to files below {}", home.display());
        RestError::new(StatusCode::FORBIDDEN, message)
    };
    base.ok_or_else(refused).map(Some)
}

fn target(upload: &Upload, path: &Path, metadata: &BTreeMap<String, String>, length: Option<u64>) -> Target {
    let (user, metadata) = (upload.user.clone(), metadata.clone());
    Target { path: path.to_owned(), user, confined_to: None, metadata, length }
}

fn describe(path: &Path, metadata: &BTreeMap<String, String>) -> Written {
    Written {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        path: path.to_string_lossy().into_owned(),
        r#type: "file",
        metadata: metadata.clone(),
    }
}
