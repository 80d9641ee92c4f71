//! Handlers that export a template as an archive and import one. Ours, not E2B's.
//! The index of an exported archive comes last, so a stream that breaks off is recognised as incomplete.
//! An import is the source of a build that was requested before, and is followed like any other build.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use builds::{BuildRules, BuildSource, BuildSpec};
use tokio::io::duplex;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::builds::{build_id, template_id};
use super::uploads::upload_refused;
use crate::auth::Caller;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

/// Size of the buffer between the archive's writer and the connection, bytes.
const BUFFER: usize = 1 << 20;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/cofferdam/v1/templates/{templateID}/archive", export)
        .post("/cofferdam/v1/templates/{templateID}/builds/{buildID}/archive", import)
}

async fn export(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(template): Segment,
) -> Result<([(HeaderName, &'static str); 1], Body), ApiError> {
    let archive = api.control.builds().template_archive(&team, &template).await?;
    let (ours, theirs) = duplex(BUFFER);
    tokio::task::spawn_blocking(move || {
        let mut writer = SyncIoBridge::new(ours);
        if let Err(error) = archive.write(&mut writer) {
            tracing::warn!(%error, "failed to export a template");
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(ReaderStream::new(theirs))))
}

async fn import(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, build)): Path<(String, String)>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (template, build) = (template_id(&template)?, build_id(&build)?);
    let archive = api.control.builds().receive_archive(team.id, body.into_data_stream()).await;
    let archive = archive.map_err(|error| upload_refused(&error))?;
    let spec = BuildSpec {
        stages: Vec::new(),
        engine: None,
        source: BuildSource::Archive(archive),
        registry: None,
        steps: Vec::new(),
        start_cmd: None,
        ready_cmd: None,
        force: false,
        rules: BuildRules::Current,
    };
    api.control.builds().start(&team, &template, build, spec).await?;
    Ok(StatusCode::ACCEPTED)
}
