//! Handlers for the content of volumes, as the SDKs send it: by a token of the volume, or a key of its team.
//! Protocol: E2B's `/volumecontent`; errors have their status as text in `code`.

mod range;

use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body as RequestBody;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use control::{TokenRefusal, Volumes};
use futures::{Stream, StreamExt, TryStreamExt};
use ids::{TeamId, VolumeId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::sync::CancellationToken;
use volumes::{Attributes, CreateOptions, Entry, EntryKind, NewFile, VolumeError, VolumePath, VolumeRoot};

use crate::auth::{Caller, admit_team};
use crate::body::{BROKE_OFF, Json as Body};
use crate::paths::Params;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};
use range::{Part, part_of};

/// How much of a file is read and written at once, bytes.
const CHUNK: usize = 128 << 10;
/// Maximum duration of a removal; what is removed until then stays removed.
const MAX_REMOVAL: Duration = Duration::from_secs(300);
/// Places of a list among its team's requests for content.
const LIST_PLACES: u32 = 8;

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/volumecontent/{volumeID}/path", stat)
        .patch("/volumecontent/{volumeID}/path", set_attributes)
        .delete("/volumecontent/{volumeID}/path", remove)
        .get("/volumecontent/{volumeID}/dir", list)
        .post("/volumecontent/{volumeID}/dir", make_dir)
        .get("/volumecontent/{volumeID}/file", read)
        .put("/volumecontent/{volumeID}/file", write)
        .without_body_limit()
}

/// A failed request for content.
struct ContentError {
    status: StatusCode,
    message: String,
}

#[derive(Debug, Serialize)]
struct ContentErrorBody {
    code: String,
    message: String,
}

impl ContentError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl IntoResponse for ContentError {
    fn into_response(self) -> Response {
        let body = ContentErrorBody { code: self.status.as_u16().to_string(), message: self.message };
        (self.status, Json(body)).into_response()
    }
}

impl From<ApiError> for ContentError {
    fn from(error: ApiError) -> Self {
        Self::new(error.status(), error.message())
    }
}

impl From<VolumeError> for ContentError {
    fn from(error: VolumeError) -> Self {
        let status = match error {
            VolumeError::NoVolume | VolumeError::NotFound => StatusCode::NOT_FOUND,
            VolumeError::Exists
            | VolumeError::NotDirectory
            | VolumeError::NotFile
            | VolumeError::Busy
            | VolumeError::Unfinished => StatusCode::CONFLICT,
            VolumeError::Invalid(_) => StatusCode::BAD_REQUEST,
            VolumeError::Full => StatusCode::INSUFFICIENT_STORAGE,
            VolumeError::Trees(_) | VolumeError::Io(_) => {
                tracing::error!(%error, "an operation on a volume failed");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the volume could not be read or written; see the server's log",
                );
            }
        };
        Self::new(status, error.to_string())
    }
}

/// A volume whose content the caller may read and write, and the request's place among those of its team.
struct OpenVolume {
    root: Arc<VolumeRoot>,
    team: TeamId,
    place: OwnedSemaphorePermit,
}

fn take_places(volumes: &Volumes, team: TeamId, count: u32) -> Result<OwnedSemaphorePermit, ContentError> {
    volumes.take_places(team, count).ok_or_else(|| {
        let text = "too many requests for the content of volumes at once; wait for some to end";
        ContentError::new(StatusCode::TOO_MANY_REQUESTS, text)
    })
}

/// Returns a body that keeps a place until it is sent, or given up.
fn body_with_place<E: Into<axum::BoxError> + 'static>(
    content: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> RequestBody {
    RequestBody::from_stream(content.map(move |piece| {
        let _ = &place;
        piece
    }))
}

impl FromRequestParts<Api> for OpenVolume {
    type Rejection = ContentError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ContentError> {
        let volumes = api.control.volumes();
        let id = volume_id(parts, api).await?;
        let team = match bearer(&parts.headers) {
            // A key of the team is as good.
            Some(token) if !token.starts_with("e2b_") => {
                check_token(api, token, id)?;
                let owner = volumes.owner(id).ok_or(VolumeError::NoVolume)?;
                admit_team(api, owner, parts)?;
                owner
            }
            bearer => {
                if let (Some(key), false) = (bearer, parts.headers.contains_key("x-api-key")) {
                    let key = HeaderValue::from_str(key).map_err(|_| refused())?;
                    parts.headers.insert("x-api-key", key);
                    parts.headers.remove(header::AUTHORIZATION);
                }
                let Caller(team) = Caller::from_request_parts(parts, api).await?;
                if volumes.owner(id) != Some(team.id) {
                    return Err(VolumeError::NoVolume.into());
                }
                team.id
            }
        };
        let place = take_places(volumes, team, 1)?;
        Ok(Self { root: volumes.open_content(id).await?, team, place })
    }
}

async fn volume_id(parts: &mut Parts, api: &Api) -> Result<VolumeId, ContentError> {
    let params = RawPathParams::from_request_parts(parts, api).await;
    let id = params.ok().and_then(|params| params.iter().next().and_then(|(_, id)| id.parse().ok()));
    id.ok_or_else(|| VolumeError::NoVolume.into())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty())
}

fn refused() -> ContentError {
    ContentError::new(
        StatusCode::UNAUTHORIZED,
        "the volume token is not valid or has expired; connect to the volume again",
    )
}

/// A token does not outlive the API key with which it was asked for.
fn check_token(api: &Api, token: &str, id: VolumeId) -> Result<(), ContentError> {
    let key = api.control.volumes().check_token(token, id).map_err(|refusal| match refusal {
        TokenRefusal::Invalid => refused(),
        TokenRefusal::OtherVolume => {
            ContentError::new(StatusCode::FORBIDDEN, "the token is for another volume")
        }
    })?;
    if key.is_some_and(|key| !api.control.has_key(key)) {
        return Err(refused());
    }
    Ok(())
}

/// An entry as clients know it.
#[derive(Debug, Serialize)]
struct EntryView {
    name: String,
    r#type: &'static str,
    path: String,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(with = "time::serde::rfc3339")]
    atime: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    mtime: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    ctime: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl From<Entry> for EntryView {
    fn from(entry: Entry) -> Self {
        Self {
            name: entry.name,
            r#type: match entry.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Symlink => "symlink",
                EntryKind::Unknown => "unknown",
            },
            path: entry.path,
            size: entry.size,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            atime: entry.accessed,
            mtime: entry.modified,
            ctime: entry.changed,
            target: entry.target,
        }
    }
}

#[derive(Debug, Deserialize)]
struct At {
    #[serde(default)]
    path: String,
    depth: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
    #[serde(default)]
    force: bool,
}

impl At {
    fn path(&self) -> Result<VolumePath, ContentError> {
        Ok(VolumePath::parse(&self.path)?)
    }

    fn options(&self) -> CreateOptions {
        let attributes = Attributes { uid: self.uid, gid: self.gid, mode: self.mode };
        CreateOptions { attributes, force: self.force }
    }
}

/// Runs an operation on a volume on a thread that may block.
async fn on_volume<T: Send + 'static>(
    volume: Arc<VolumeRoot>,
    work: impl FnOnce(&VolumeRoot) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, ContentError> {
    let done = tokio::task::spawn_blocking(move || work(&volume)).await;
    Ok(done.map_err(|error| VolumeError::Io(std::io::Error::other(error)))??)
}

type EntryAnswer = Result<Json<EntryView>, ContentError>;

async fn stat(volume: OpenVolume, EntryParams(at): EntryParams) -> EntryAnswer {
    let path = at.path()?;
    Ok(Json(on_volume(volume.root, move |volume| volume.stat(&path)).await?.into()))
}

#[derive(Debug, Deserialize)]
struct NewAttributes {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
}

async fn set_attributes(
    volume: OpenVolume,
    EntryParams(at): EntryParams,
    body: Result<Body<NewAttributes>, ApiError>,
) -> EntryAnswer {
    let path = at.path()?;
    let Body(NewAttributes { uid, gid, mode }) = body?;
    let attributes = Attributes { uid, gid, mode };
    Ok(Json(on_volume(volume.root, move |volume| volume.set_attributes(&path, attributes)).await?.into()))
}

async fn remove(volume: OpenVolume, EntryParams(at): EntryParams) -> Result<StatusCode, ContentError> {
    let path = at.path()?;
    // Ends when the client is gone, and at the latest when it will not wait any more: a sandbox may add files for ever.
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let until = Instant::now() + MAX_REMOVAL;
    let is_wanted = move || !stop.is_cancelled() && Instant::now() < until;
    on_volume(volume.root, move |volume| volume.remove(&path, is_wanted)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(
    State(api): State<Api>,
    volume: OpenVolume,
    EntryParams(at): EntryParams,
) -> Result<Response, ContentError> {
    let path = at.path()?;
    // A list may be as large as eight pieces of files.
    let place = take_places(api.control.volumes(), volume.team, LIST_PLACES)?;
    let entries = on_volume(volume.root, move |volume| volume.list(&path, at.depth.unwrap_or(1))).await?;
    let entries: Vec<EntryView> = entries.into_iter().map(Into::into).collect();
    let mut json = Bytes::from(serde_json::to_vec(&entries).expect("plain data serialises"));
    // In pieces: the place is free when the last one is on its way.
    let pieces = std::iter::from_fn(move || {
        let piece = json.split_to(json.len().min(CHUNK));
        (!piece.is_empty()).then_some(Ok::<_, std::convert::Infallible>(piece))
    });
    let body = body_with_place(futures::stream::iter(pieces), place);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn make_dir(
    volume: OpenVolume,
    EntryParams(at): EntryParams,
) -> Result<(StatusCode, Json<EntryView>), ContentError> {
    let (path, options) = (at.path()?, at.options());
    let made = on_volume(volume.root, move |volume| volume.make_dir(&path, options)).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

async fn read(
    volume: OpenVolume,
    EntryParams(at): EntryParams,
    headers: HeaderMap,
) -> Result<Response, ContentError> {
    let path = at.path()?;
    let found = on_volume(volume.root, move |volume| volume.read(&path)).await?;
    let size = found.size;
    let part = match headers.get(header::RANGE).and_then(|range| range.to_str().ok()) {
        Some(range) => part_of(range, size),
        None => Part::Whole,
    };
    let (first, end, status) = match part {
        Part::Whole => (0, size, StatusCode::OK),
        Part::Bytes(first, end) => (first, end, StatusCode::PARTIAL_CONTENT),
        Part::None => {
            let range = (header::CONTENT_RANGE, format!("bytes */{size}"));
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [range]).into_response());
        }
    };
    let mut file = found.file;
    if first > 0 {
        file.seek(SeekFrom::Start(first)).map_err(VolumeError::from)?;
    }
    // A file that shrinks meanwhile breaks the response off; one that grows ends where it ended.
    let content = tokio::fs::File::from_std(file).take(end - first);
    let body = body_with_place(ReaderStream::with_capacity(content, CHUNK), volume.place);
    let mut response = (status, body).into_response();
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{size}", end - 1);
        fields
            .insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits are a header value"));
    }
    Ok(response)
}

async fn write(
    volume: OpenVolume,
    EntryParams(at): EntryParams,
    body: RequestBody,
) -> Result<(StatusCode, Json<EntryView>), ContentError> {
    let (path, options) = (at.path()?, at.options());
    let _place = volume.place;
    let new = on_volume(volume.root, move |volume| volume.write(&path, options)).await?;
    let new = receive(new, body).await?;
    let finished = tokio::task::spawn_blocking(move || new.finish()).await;
    let entry = finished.map_err(|error| VolumeError::Io(std::io::Error::other(error)))??;
    Ok((StatusCode::CREATED, Json(entry.into())))
}

/// Writes a body to a new file. What breaks off leaves nothing.
async fn receive(new: NewFile, body: RequestBody) -> Result<NewFile, ContentError> {
    let file = tokio::fs::File::from_std(new.file().try_clone().map_err(VolumeError::from)?);
    let mut file = BufWriter::with_capacity(CHUNK, file);
    let content = body
        .into_data_stream()
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, error));
    let copied = tokio::io::copy_buf(&mut StreamReader::new(content), &mut file).await;
    let copied = match copied {
        Ok(_) => file.flush().await,
        Err(error) => Err(error),
    };
    match copied {
        Ok(()) => Ok(new),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(ContentError::new(StatusCode::BAD_REQUEST, BROKE_OFF))
        }
        Err(error) => Err(VolumeError::from(error).into()),
    }
}

/// The query's parameters, with errors in the content API's shape.
struct EntryParams(At);

impl FromRequestParts<Api> for EntryParams {
    type Rejection = ContentError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ContentError> {
        let Params(at) = Params::<At>::from_request_parts(parts, api).await?;
        Ok(Self(at))
    }
}
