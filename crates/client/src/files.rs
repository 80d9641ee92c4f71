//! Files in a sandbox. Contents are transferred by plain HTTP, everything else is done by RPC.
//! Paths are absolute, or relative to the user's home.
//! Contents can be streamed in both directions.

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::{ClientBody, full_body};
use envd_api::filesystem as wire;
use futures::{Stream, StreamExt, TryStreamExt};
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::Serialize;
use time::OffsetDateTime;

use crate::envd::Envd;
use crate::rest::query;
use crate::transport::{self, address, unreachable};
use crate::{Error, Result};

/// Type of a file. Symbolic links are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Another type, or a dangling link.
    Other,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryInfo {
    /// Last part of the path.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// Its type.
    pub kind: EntryKind,
    /// Size, bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Type and permissions of the entry itself as `ls` shows them.
    pub permissions: String,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Target of a symbolic link.
    pub symlink_target: Option<String>,
    /// When its contents changed last.
    pub modified: Option<OffsetDateTime>,
}

impl From<wire::EntryInfo> for EntryInfo {
    fn from(entry: wire::EntryInfo) -> Self {
        let modified = entry.modified_time.as_option().and_then(|at| {
            let seconds = OffsetDateTime::from_unix_timestamp(at.seconds).ok()?;
            seconds.checked_add(time::Duration::nanoseconds(at.nanos.into()))
        });
        Self {
            kind: match entry.r#type.as_known() {
                Some(wire::FileType::FILE_TYPE_FILE) => EntryKind::File,
                Some(wire::FileType::FILE_TYPE_DIRECTORY) => EntryKind::Directory,
                _ => EntryKind::Other,
            },
            name: entry.name,
            path: entry.path,
            size: u64::try_from(entry.size).unwrap_or(0),
            mode: entry.mode,
            permissions: entry.permissions,
            owner: entry.owner,
            group: entry.group,
            symlink_target: entry.symlink_target,
            modified,
        }
    }
}

/// Files of one sandbox; from [`Sandbox::files`](crate::Sandbox::files).
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    pub(crate) envd: &'a Envd,
    pub(crate) user: Option<&'a str>,
}

impl<'a> Files<'a> {
    /// Acts as another user: relative paths start at their home, and new files belong to them.
    #[must_use]
    pub fn as_user(self, user: &'a str) -> Self {
        Self { user: Some(user), ..self }
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// There is no such file, or it is a directory.
    pub async fn read(&self, path: &str) -> Result<Bytes> {
        let body = self.open(path).await?.into_body();
        let broken = |error| unreachable(address(&self.envd.base), &error);
        Ok(body.collect().await.map_err(broken)?.to_bytes())
    }

    /// Reads a whole file as text.
    ///
    /// # Errors
    /// As [`Files::read`]; [`Error::InvalidArgument`] if it is not UTF-8.
    pub async fn read_text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.read(path).await?.into())
            .map_err(|_| Error::InvalidArgument(format!("{path} is not UTF-8 text")))
    }

    /// Reads a file as a stream.
    ///
    /// # Errors
    /// As [`Files::read`]; the stream fails when the connection breaks.
    pub async fn read_stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let body = self.open(path).await?.into_body();
        let address = address(&self.envd.base);
        let pieces = BodyDataStream::new(body);
        Ok(pieces.map(move |piece| piece.map_err(|error| unreachable(address.clone(), &error))).boxed())
    }

    async fn open(&self, path: &str) -> Result<Response<Incoming>> {
        let request = self.request(Method::GET, path, transport::empty_body())?;
        self.accepted(self.envd.transport.send(request).await?).await
    }

    /// Writes a file and creates its parent directories. An existing file is replaced.
    ///
    /// # Errors
    /// The path is a directory, or the disk is full.
    pub async fn write(&self, path: &str, contents: impl Into<Bytes>) -> Result<()> {
        self.upload(path, full_body(contents.into())).await
    }

    /// Writes a file from a stream.
    ///
    /// # Errors
    /// As [`Files::write`]; an error of the stream ends the upload.
    pub async fn write_stream<S, E>(&self, path: &str, contents: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let frames = contents
            .map_ok(Frame::data)
            .map_err(|error| ConnectError::internal(error.to_string()).with_source(error));
        self.upload(path, BodyExt::boxed(StreamBody::new(frames))).await
    }

    async fn upload(&self, path: &str, body: ClientBody) -> Result<()> {
        if path.is_empty() {
            return Err(Error::InvalidArgument("a file needs a path".into()));
        }
        let mut request = self.request(Method::POST, path, body)?;
        let kind = http::HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let response = self.accepted(self.envd.transport.send(request).await?).await?;
        // Read to its end, so that the connection can be used again.
        let broken = |error| unreachable(address(&self.envd.base), &error);
        response.into_body().collect().await.map(|_| ()).map_err(broken)
    }

    fn request(&self, method: Method, path: &str, body: ClientBody) -> Result<Request<ClientBody>> {
        let mut pairs = vec![("path", path.to_owned())];
        pairs.extend(self.user.map(|user| ("username", user.to_owned())));
        let uri = transport::join(&self.envd.base, &format!("{}{}", envd_api::paths::FILES, query(&pairs)))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().extend(self.envd.headers.clone());
        Ok(request)
    }

    async fn accepted(&self, response: Response<Incoming>) -> Result<Response<Incoming>> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await;
        Err(Envd::refused(status, &body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    }

    /// Lists a directory, `depth` levels deep (1 is the directory itself), ordered by name.
    ///
    /// # Errors
    /// There is no such directory.
    pub async fn list(&self, path: &str, depth: u32) -> Result<Vec<EntryInfo>> {
        if depth == 0 {
            return Err(Error::InvalidArgument("depth must be at least 1".into()));
        }
        let request = wire::ListDirRequest { path: path.into(), depth, ..Default::default() };
        match self.envd.filesystem.list_dir_with_options(request, self.envd.unary(self.user)).await {
            Ok(response) => Ok(response.into_owned().entries.into_iter().map(Into::into).collect()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }

    /// Creates a directory and its parents. Returns whether it is new.
    ///
    /// # Errors
    /// A file is in the way.
    pub async fn make_dir(&self, path: &str) -> Result<bool> {
        let request = wire::MakeDirRequest { path: path.into(), ..Default::default() };
        match self.envd.filesystem.make_dir_with_options(request, self.envd.unary(self.user)).await {
            Ok(_) => Ok(true),
            Err(error) => match self.envd.explain(error).await {
                Error::Conflict(_) => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Removes a file, or a directory with its contents. Succeeds if it does not exist.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn remove(&self, path: &str) -> Result<()> {
        let request = wire::RemoveRequest { path: path.into(), ..Default::default() };
        match self.envd.filesystem.remove_with_options(request, self.envd.unary(self.user)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }

    /// Moves a file or directory. A file at the new path is replaced.
    ///
    /// # Errors
    /// The old path does not exist.
    pub async fn rename(&self, old: &str, new: &str) -> Result<EntryInfo> {
        let request = wire::MoveRequest { source: old.into(), destination: new.into(), ..Default::default() };
        match self.envd.filesystem.r#move_with_options(request, self.envd.unary(self.user)).await {
            Ok(response) => entry(response.into_owned().entry.into_option()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }

    /// Whether a path exists.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        match self.info(path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Describes the file or directory at a path.
    ///
    /// # Errors
    /// The path does not exist.
    pub async fn info(&self, path: &str) -> Result<EntryInfo> {
        let request = wire::StatRequest { path: path.into(), ..Default::default() };
        match self.envd.filesystem.stat_with_options(request, self.envd.unary(self.user)).await {
            Ok(response) => entry(response.into_owned().entry.into_option()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }
}

fn entry(entry: Option<wire::EntryInfo>) -> Result<EntryInfo> {
    entry.map(Into::into).ok_or_else(|| Error::Protocol("the entry is missing".into()))
}
