//! Templates: list, describe, publish, delete, build, export and import.
//! To build a template, request a build, upload archives of files to it (`uploads`), start it, and poll its progress.
//! Export and import are Cofferdam only; the rest is E2B's Build System 2.0.

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
    /// Status of its newest build.
    pub build_status: String,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Number of sandboxes created from it.
    pub spawn_count: u64,
    /// Number of its builds.
    pub build_count: u64,
    /// Its builds, newest first; only where one template is requested.
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
    /// When it was requested.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Options of a requested build.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildOptions {
    /// `alias[:tag]`.
    pub name: String,
    /// Further tags.
    pub tags: Vec<String>,
    /// Processors of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// Their memory, MiB.
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
}

/// A requested build.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BuildHandle {
    /// Id of its template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "buildID")]
    pub build_id: String,
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
    /// The stage whose files a `COPY` copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_stage: Option<String>,
}

/// A stage of a build before the last; later ones start from it or copy its files. An official server does not know stages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStage {
    /// Its name.
    pub name: String,
    /// The container image it starts from, unless it starts from a stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    /// The earlier stage it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_stage: Option<String>,
    /// The steps, in order.
    pub steps: Vec<BuildStep>,
}

/// What to build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildPlan {
    /// The container image it starts from, unless it starts from a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    /// The template it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_template: Option<String>,
    /// The stage it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_stage: Option<String>,
    /// Stages before the last, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<BuildStage>,
    /// The steps, in order.
    pub steps: Vec<BuildStep>,
    /// The start command, which runs in every sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// The ready command, which succeeds once the start command is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_cmd: Option<String>,
    /// Whether to ignore the cache of earlier builds.
    pub force: bool,
    /// The engine that runs the build and the template's sandboxes; by default that of the template or image it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Progress of a build.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildProgress {
    /// `waiting`, `building`, `ready` or `error`.
    pub status: String,
    /// Further lines of its log.
    pub log_entries: Vec<BuildLine>,
    /// Why it failed.
    pub reason: Option<BuildReason>,
}

impl BuildProgress {
    /// Whether the build has succeeded or failed.
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
    /// Its text.
    pub message: String,
    /// The step it belongs to.
    pub step: Option<String>,
}

/// Why a build failed.
#[derive(Debug, Clone, Deserialize)]
pub struct BuildReason {
    /// A description.
    pub message: String,
    /// The step that failed.
    pub step: Option<String>,
}

/// Where to upload an archive of files, if that is needed.
#[derive(Debug, Clone, Deserialize)]
pub struct FilesLink {
    /// Whether the server has the archive already.
    pub present: bool,
    /// Where to upload it; valid for half an hour.
    pub url: String,
}

impl Client {
    /// Lists the team's templates and the public ones, newest first.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>> {
        read_json(&self.rest.call(As::Team, Method::GET, "/templates").await?)
    }

    /// Returns one of the team's templates, with its builds.
    ///
    /// # Errors
    /// There is no template of this name.
    pub async fn template(&self, name: &str) -> Result<TemplateInfo> {
        read_json(&self.rest.call(As::Team, Method::GET, &format!("/templates/{}", encode(name))).await?)
    }

    /// Deletes a template or snapshot.
    ///
    /// # Errors
    /// There is no template of this name, or sandboxes use it.
    pub async fn delete_template(&self, name: &str) -> Result<()> {
        check(&self.rest.call(As::Team, Method::DELETE, &format!("/templates/{}", encode(name))).await?)
    }

    /// Makes a template public, or private again.
    ///
    /// # Errors
    /// There is no template of this name.
    pub async fn publish_template(&self, name: &str, public: bool) -> Result<()> {
        let path = format!("/v2/templates/{}", encode(name));
        let body = serde_json::json!({ "public": public });
        check(&self.rest.call_with(As::Team, Method::PATCH, &path, &body).await?)
    }

    /// Requests a build.
    ///
    /// # Errors
    /// The name or the size is not allowed.
    pub async fn request_build(&self, options: &BuildOptions) -> Result<BuildHandle> {
        read_json(&self.rest.call_with(As::Team, Method::POST, "/v3/templates", options).await?)
    }

    /// Returns where to upload an archive of files. `hash` is a SHA-256 of the caller's choice.
    ///
    /// # Errors
    /// The hash is malformed.
    pub async fn files_link(&self, build: &BuildHandle, hash: &str) -> Result<FilesLink> {
        let path = format!("/templates/{}/files/{}", encode(&build.template_id), encode(hash));
        read_json(&self.rest.call(As::Team, Method::GET, &path).await?)
    }

    /// Starts a build.
    ///
    /// # Errors
    /// The build was started already, or the plan is invalid.
    pub async fn start_build(&self, build: &BuildHandle, plan: &BuildPlan) -> Result<()> {
        let path = format!("/v2/templates/{}/builds/{}", encode(&build.template_id), encode(&build.build_id));
        check(&self.rest.call_with(As::Team, Method::POST, &path, plan).await?)
    }

    /// Returns a build's progress, with its log lines after the first `seen`.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn build_progress(&self, build: &BuildHandle, seen: usize) -> Result<BuildProgress> {
        let path = format!(
            "/templates/{}/builds/{}/status?logsOffset={seen}&limit=100",
            encode(&build.template_id),
            encode(&build.build_id)
        );
        read_json(&self.rest.call(As::Team, Method::GET, &path).await?)
    }

    /// Exports a template as a stream of one archive. Cofferdam only.
    ///
    /// # Errors
    /// There is no template of this name; the stream fails when the connection breaks.
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
    /// The build was started already, or the archive is too large. Errors in the archive fail the build instead.
    pub async fn import_archive<S, E>(&self, build: &BuildHandle, contents: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + Sync + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = format!(
            "/cofferdam/v1/templates/{}/builds/{}/archive",
            encode(&build.template_id),
            encode(&build.build_id)
        );
        let request = self.rest.request(As::Team, Method::POST, &path)?;
        check(&self.send_stream(request, contents).await?)
    }
}
