//! Templates: list, describe, publish, delete; build from steps with files of their own, follow a build; export and import.
//! A build is asked for, fed with archives (`uploads`), started, and then followed until it has ended.
//! Archives are Cofferdam only; the rest is E2B's Build System 2.0.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::Method;
use http_body_util::{BodyDataStream, BodyExt};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode};
use crate::transport::{self, address, check, read_json, unreachable};
use crate::{Client, Error, Result};

/// A template.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateInfo {
    /// Its id.
    #[serde(rename = "templateID")]
    pub id: String,
    /// Its names, with their namespaces.
    pub names: Vec<String>,
    /// Whether other teams may use it.
    pub public: bool,
    /// Processors of its sandboxes.
    pub cpu_count: u32,
    /// Their memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mib: u32,
    /// Their writable disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_mib: u32,
    /// How far its newest build is.
    pub build_status: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Sandboxes started from it.
    pub spawn_count: u64,
    /// Builds of it.
    pub build_count: u64,
    /// They, newest first, where one template is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<BuildInfo>,
}

/// A build of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    /// Its id.
    #[serde(rename = "buildID")]
    pub id: String,
    /// `waiting`, `building`, `ready` or `error`.
    pub status: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A build to ask for.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildOptions {
    /// `alias[:tag]`.
    pub name: String,
    /// More tags.
    pub tags: Vec<String>,
    /// Processors of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// Their memory, MiB.
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
}

/// A build that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BuildHandle {
    /// Its template.
    #[serde(rename = "templateID")]
    pub template: String,
    /// Its id.
    #[serde(rename = "buildID")]
    pub build: String,
}

/// A step of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStep {
    /// `RUN`, `COPY`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// In the wire contract's order.
    pub args: Vec<String>,
    /// The archive of a `COPY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_hash: Option<String>,
}

/// What to build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildPlan {
    /// The image it starts from; or else a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    /// The template it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_template: Option<String>,
    /// In order.
    pub steps: Vec<BuildStep>,
    /// What runs in every sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// What succeeds once that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_cmd: Option<String>,
    /// Whether nothing of earlier builds is to be used.
    pub force: bool,
    /// The engine that runs the build and the template's sandboxes; without it that of what it is built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// How far a build is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildProgress {
    /// `waiting`, `building`, `ready` or `error`.
    pub status: String,
    /// The next lines of its log.
    pub log_entries: Vec<BuildLine>,
    /// Why it failed.
    pub reason: Option<BuildReason>,
}

impl BuildProgress {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "ready" | "error")
    }
}

/// A line of a build's log.
#[derive(Debug, Clone, Deserialize)]
pub struct BuildLine {
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// What it says.
    pub message: String,
    /// The step it belongs to.
    pub step: Option<String>,
}

/// Why a build failed.
#[derive(Debug, Clone, Deserialize)]
pub struct BuildReason {
    /// In words.
    pub message: String,
    /// Which step is to blame.
    pub step: Option<String>,
}

/// Whether an archive has to be sent, and where to.
#[derive(Debug, Clone, Deserialize)]
pub struct FilesLink {
    /// It is there already.
    pub present: bool,
    /// Where to send it; good for half an hour.
    pub url: String,
}

impl Client {
    /// The team's templates and everybody's, newest first.
    ///
    /// # Errors
    /// The server refused or did not answer.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>> {
        read_json(&self.rest.call(As::Team, Method::GET, "/templates").await?)
    }

    /// One of the team's templates, with its builds.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn template(&self, name: &str) -> Result<TemplateInfo> {
        read_json(&self.rest.call(As::Team, Method::GET, &format!("/templates/{}", encode(name))).await?)
    }

    /// Deletes a template or snapshot.
    ///
    /// # Errors
    /// There is none of this name, or sandboxes use it.
    pub async fn delete_template(&self, name: &str) -> Result<()> {
        check(&self.rest.call(As::Team, Method::DELETE, &format!("/templates/{}", encode(name))).await?)
    }

    /// Makes a template usable by other teams, or no more.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn publish_template(&self, name: &str, public: bool) -> Result<()> {
        let path = format!("/v2/templates/{}", encode(name));
        let body = serde_json::json!({ "public": public });
        check(&self.rest.call_with(As::Team, Method::PATCH, &path, &body).await?)
    }

    /// Asks for a build.
    ///
    /// # Errors
    /// The name or the size is not allowed.
    pub async fn request_build(&self, options: &BuildOptions) -> Result<BuildHandle> {
        read_json(&self.rest.call_with(As::Team, Method::POST, "/v3/templates", options).await?)
    }

    /// Where to send an archive of files, by a SHA-256 of the caller's choice.
    ///
    /// # Errors
    /// The hash is none.
    pub async fn files_link(&self, build: &BuildHandle, hash: &str) -> Result<FilesLink> {
        let path = format!("/templates/{}/files/{}", encode(&build.template), encode(hash));
        read_json(&self.rest.call(As::Team, Method::GET, &path).await?)
    }

    /// Starts a build.
    ///
    /// # Errors
    /// It does not wait any more, or the plan makes no sense.
    pub async fn start_build(&self, build: &BuildHandle, plan: &BuildPlan) -> Result<()> {
        let path = format!("/v2/templates/{}/builds/{}", encode(&build.template), encode(&build.build));
        check(&self.rest.call_with(As::Team, Method::POST, &path, plan).await?)
    }

    /// How far a build is, and its lines after the first `seen`.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn build_progress(&self, build: &BuildHandle, seen: usize) -> Result<BuildProgress> {
        let path = format!(
            "/templates/{}/builds/{}/status?logsOffset={seen}&limit=100",
            encode(&build.template),
            encode(&build.build)
        );
        read_json(&self.rest.call(As::Team, Method::GET, &path).await?)
    }

    /// A template as one archive, piece by piece. Cofferdam only.
    ///
    /// # Errors
    /// There is none of this name; the stream fails when the connection breaks.
    pub async fn export_template(
        &self,
        name: &str,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let path = format!("/cofferdam/v1/templates/{}/archive", encode(name));
        let request = self.rest.request(As::Team, Method::GET, &path)?;
        let request = request.body(transport::empty_body()).map_err(|e| Error::Config(e.to_string()))?;
        let response = self.rest.transport().send(request).await?;
        let address = address(self.rest.base());
        if !response.status().is_success() {
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| unreachable(address, &error))?.to_bytes();
            return Err(Error::from_status(head.status, transport::error_message(&body)));
        }
        let pieces = BodyDataStream::new(response.into_body());
        Ok(pieces.map(move |piece| piece.map_err(|error| unreachable(address.clone(), &error))).boxed())
    }

    /// Starts a build from an archive of a template or of a container image. Cofferdam only.
    ///
    /// # Errors
    /// The build does not wait any more, or the archive is too large. What is wrong with the archive is the build's failure.
    pub async fn import_archive<S, E>(&self, build: &BuildHandle, contents: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = format!(
            "/cofferdam/v1/templates/{}/builds/{}/archive",
            encode(&build.template),
            encode(&build.build)
        );
        let request = self.rest.request(As::Team, Method::POST, &path)?;
        check(&self.send_stream(request, contents).await?)
    }
}
