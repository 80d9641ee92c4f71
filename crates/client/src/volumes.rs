//! Volumes: directory trees that outlive sandboxes, and their files.
//! Sizes and limits, copies, read-only mounts and mounts of a directory are Cofferdam's own.

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::ClientBody;
use futures::{Stream, StreamExt, TryStreamExt};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode, query};
use crate::transport::{self, address, check, error_message, read_json, unreachable};
use crate::{Client, Error, Result};

/// A volume that a new sandbox mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Where it is mounted, absolute.
    pub path: String,
    /// Whether the sandbox may only read.
    pub read_only: bool,
    /// The directory of the volume that is mounted; `None` for all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    #[serde(rename = "volumeID")]
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A volume with how much room it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeUsage {
    /// The volume.
    #[serde(flatten)]
    pub volume: Volume,
    /// Size of its content, bytes.
    pub used_bytes: u64,
    /// Size at which writes fail, MiB.
    #[serde(rename = "sizeLimitMB")]
    pub size_limit_mb: Option<u32>,
    /// Whether the server's storage enforces the limit.
    pub limit_enforced: bool,
}

/// What is at a path of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Last part of the path.
    pub name: String,
    /// `file`, `directory`, `symlink` or `unknown`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Absolute path within the volume.
    pub path: String,
    /// Size, bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed last.
    #[serde(rename = "mtime", with = "time::serde::rfc3339")]
    pub modified: OffsetDateTime,
    /// Text of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Files of one volume; from [`Client::volume_files`].
#[derive(Debug, Clone, Copy)]
pub struct VolumeFiles<'a> {
    client: &'a Client,
    id: &'a str,
}

impl Client {
    /// Creates an empty volume.
    ///
    /// # Errors
    /// The name is taken, or is no name.
    pub async fn create_volume(&self, name: &str, size_limit_mb: Option<u32>) -> Result<Volume> {
        let body = serde_json::json!({ "name": name, "sizeLimitMB": size_limit_mb });
        read_json(&self.rest.call_with(As::Team, Method::POST, "/volumes", &body).await?)
    }

    /// Lists the team's volumes, oldest first.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn list_volumes(&self) -> Result<Vec<Volume>> {
        read_json(&self.rest.call(As::Team, Method::GET, "/volumes").await?)
    }

    /// Finds a volume by its id or name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn find_volume(&self, id_or_name: &str) -> Result<Volume> {
        let volumes = self.list_volumes().await?;
        let found =
            volumes.into_iter().find(|volume| [&volume.id, &volume.name].contains(&&id_or_name.to_owned()));
        found.ok_or_else(|| Error::NotFound(format!("there is no volume '{id_or_name}'")))
    }

    /// Returns how much room a volume takes.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn volume_usage(&self, id: &str) -> Result<VolumeUsage> {
        read_json(
            &self.rest.call(As::Team, Method::GET, &format!("/cofferdam/v1/volumes/{}", encode(id))).await?,
        )
    }

    /// Sets the limit of a volume; `None` removes it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn limit_volume(&self, id: &str, size_limit_mb: Option<u32>) -> Result<VolumeUsage> {
        let path = format!("/cofferdam/v1/volumes/{}", encode(id));
        let body = serde_json::json!({ "sizeLimitMB": size_limit_mb });
        read_json(&self.rest.call_with(As::Team, Method::PATCH, &path, &body).await?)
    }

    /// Copies a volume, as it is at one moment, to a new one. Instant on storage that can.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the name is taken.
    pub async fn copy_volume(&self, id: &str, name: &str) -> Result<Volume> {
        let path = format!("/cofferdam/v1/volumes/{}/copies", encode(id));
        let body = serde_json::json!({ "name": name });
        read_json(&self.rest.call_with(As::Team, Method::POST, &path, &body).await?)
    }

    /// Deletes a volume with its content.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_volume(&self, id: &str) -> Result<()> {
        check(&self.rest.call(As::Team, Method::DELETE, &format!("/volumes/{}", encode(id))).await?)
    }

    /// Returns the files of the volume with an id.
    #[must_use]
    pub fn volume_files<'a>(&'a self, id: &'a str) -> VolumeFiles<'a> {
        VolumeFiles { client: self, id }
    }
}

impl VolumeFiles<'_> {
    /// Returns what is at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn stat(&self, path: &str) -> Result<VolumeEntry> {
        read_json(&self.call(Method::GET, "path", &[("path", path.to_owned())]).await?)
    }

    /// Lists a directory, `depth` levels deep: 1 to 10.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn list(&self, path: &str, depth: u32) -> Result<Vec<VolumeEntry>> {
        let pairs = [("path", path.to_owned()), ("depth", depth.to_string())];
        read_json(&self.call(Method::GET, "dir", &pairs).await?)
    }

    /// Makes a directory and its parents. It may exist.
    ///
    /// # Errors
    /// Something else is there.
    pub async fn make_dir(&self, path: &str) -> Result<VolumeEntry> {
        let pairs = [("path", path.to_owned()), ("force", "true".to_owned())];
        read_json(&self.call(Method::POST, "dir", &pairs).await?)
    }

    /// Removes a file or a directory with everything in it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn remove(&self, path: &str) -> Result<()> {
        check(&self.call(Method::DELETE, "path", &[("path", path.to_owned())]).await?)
    }

    /// Reads a file as a stream.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the stream fails when the connection breaks.
    pub async fn read_stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let response = self.send(Method::GET, &[("path", path.to_owned())], transport::empty_body()).await?;
        let server = address(self.client.rest.base());
        let pieces = BodyDataStream::new(response.into_body());
        Ok(pieces.map(move |piece| piece.map_err(|error| unreachable(server.clone(), &error))).boxed())
    }

    /// Writes a file from a stream, with its parents. An existing file is replaced once all of the new one is there.
    ///
    /// # Errors
    /// The path is a directory, the volume is full, or the stream fails.
    pub async fn write_stream<S, E>(&self, path: &str, mode: Option<u32>, contents: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let frames = contents
            .map_ok(Frame::data)
            .map_err(|error| ConnectError::internal(error.to_string()).with_source(error));
        let mut pairs = vec![("path", path.to_owned()), ("force", "true".to_owned())];
        pairs.extend(mode.map(|mode| ("mode", mode.to_string())));
        self.send(Method::PUT, &pairs, BodyExt::boxed(StreamBody::new(frames))).await.map(drop)
    }

    async fn call(&self, method: Method, what: &str, pairs: &[(&str, String)]) -> Result<Response<Bytes>> {
        self.client.rest.call(As::Team, method, &self.path(what, pairs)).await
    }

    /// Sends a request with or for content, without a time limit.
    async fn send(
        &self,
        method: Method,
        pairs: &[(&str, String)],
        body: ClientBody,
    ) -> Result<Response<Incoming>> {
        let request = self.client.rest.request(As::Team, method, &self.path("file", pairs))?;
        let request = request
            .header(USER_AGENT, transport::USER_AGENT)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body)
            .map_err(|error| Error::Config(error.to_string()))?;
        let response = self.client.rest.transport().send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body =
            response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(Error::from_status(status, error_message(&body)))
    }

    fn path(&self, what: &str, pairs: &[(&str, String)]) -> String {
        format!("/volumecontent/{}/{what}{}", encode(self.id), query(pairs))
    }
}
