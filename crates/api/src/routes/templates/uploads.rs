//! Handlers for uploads of build files: the link to upload to, the upload itself, and its state.
//! An upload has no API key: its URL is signed by this server. One that broke off is continued with `Content-Range`.
//! Protocol: E2B's link for a plain `PUT`, and resumable uploads as in Google Cloud Storage.

use axum::Json;
use axum::body::Body as RequestBody;
use axum::extract::{OriginalUri, Path, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use builds::{UploadAddress, UploadError, UploadRange, UploadState};
use serde::Deserialize;
use serde_json::{Value, json};

use super::builds::template_id;
use crate::auth::Caller;
use crate::paths::Params;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

pub(super) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/templates/{templateID}/files/{hash}", link)
        .get("/cofferdam/v1/build-files/{team}/{hash}", state)
        .put("/cofferdam/v1/build-files/{team}/{hash}", receive)
        .without_body_limit()
}

async fn link(
    State(api): State<Api>,
    Caller(team): Caller,
    Path((template, hash)): Path<(String, String)>,
    OriginalUri(uri): OriginalUri,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let link = api.control.builds().files_link(&team, &template_id(&template)?, &hash)?;
    let url = format!("{}{}", server_url(&uri), link.path);
    Ok((StatusCode::CREATED, Json(json!({ "present": link.present, "url": url }))))
}

/// Returns the URL of this server as the client knows it. The edge has made targets absolute with it.
fn server_url(target: &Uri) -> String {
    let scheme = target.scheme_str().unwrap_or("http");
    let host = target.authority().map_or("localhost", Authority::as_str);
    format!("{scheme}://{host}")
}

#[derive(Debug, Deserialize)]
struct UploadParams {
    upload: String,
    expires: i64,
    token: String,
}

fn address(team: &str, hash: String, params: UploadParams) -> Result<UploadAddress, ApiError> {
    let UploadParams { upload, expires, token } = params;
    let team = team.parse().map_err(|_| upload_refused(&UploadError::Link))?;
    Ok(UploadAddress { team, hash, upload, expires, token })
}

/// Returns how much of an upload the server has. Also for `HEAD`.
async fn state(
    State(api): State<Api>,
    Path((team, hash)): Path<(String, String)>,
    Params(params): Params<UploadParams>,
) -> Result<Response, ApiError> {
    let address = address(&team, hash, params)?;
    let state = api.control.builds().upload_state(&address).await.map_err(|error| upload_refused(&error))?;
    Ok(answer(state))
}

async fn receive(
    State(api): State<Api>,
    Path((team, hash)): Path<(String, String)>,
    Params(params): Params<UploadParams>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let address = address(&team, hash, params)?;
    let range = match headers.get(header::CONTENT_RANGE) {
        None => None,
        Some(range) => match content_range(range.to_str().unwrap_or_default())? {
            ContentRange::Query => {
                let state = api
                    .control
                    .builds()
                    .upload_state(&address)
                    .await
                    .map_err(|error| upload_refused(&error))?;
                return Ok(answer(state));
            }
            ContentRange::Bytes(range) => Some(range),
        },
    };
    match api.control.builds().receive_files(&address, range, body.into_data_stream()).await {
        Ok(state) => Ok(answer(state)),
        Err(error) => {
            let mut response = upload_refused(&error).into_response();
            if let UploadError::Gap(here) = error {
                add_range(&mut response, here);
            }
            Ok(response)
        }
    }
}

/// 200 for a complete upload; 308 with the received bytes as `Range` for a partial one, without `Range` if there are none.
fn answer(state: UploadState) -> Response {
    match state {
        UploadState::Complete => StatusCode::OK.into_response(),
        UploadState::Partial(here) => {
            let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
            add_range(&mut response, here);
            response
        }
    }
}

fn add_range(response: &mut Response, here: u64) {
    if let Some(last) = here.checked_sub(1) {
        let range =
            HeaderValue::from_str(&format!("bytes=0-{last}")).expect("digits are no control characters");
        response.headers_mut().insert(header::RANGE, range);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum ContentRange {
    /// `bytes */total`: a query for the upload's state.
    Query,
    Bytes(UploadRange),
}

/// Parses `bytes first-last/total`, where `*` is an unknown range or total.
fn content_range(text: &str) -> Result<ContentRange, ApiError> {
    let refused = || ApiError::bad_request("Content-Range must be like 'bytes 0-99/1000' or 'bytes */1000'");
    let number = |text: &str| text.parse::<u64>().map_err(|_| refused());
    let (range, total) =
        text.strip_prefix("bytes ").and_then(|text| text.split_once('/')).ok_or_else(refused)?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    if range == "*" {
        return Ok(ContentRange::Query);
    }
    let (first, last) = range.split_once('-').ok_or_else(refused)?;
    let (first, last) = (number(first)?, number(last)?);
    let length = last.checked_sub(first).and_then(|length| length.checked_add(1)).ok_or_else(refused)?;
    if total.is_some_and(|total| last >= total) {
        return Err(refused());
    }
    Ok(ContentRange::Bytes(UploadRange { first, length, total }))
}

pub(super) fn upload_refused(error: &UploadError) -> ApiError {
    let status = match error {
        UploadError::Link => StatusCode::FORBIDDEN,
        UploadError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        UploadError::Incomplete | UploadError::Length => StatusCode::BAD_REQUEST,
        UploadError::Gap(_) => StatusCode::RANGE_NOT_SATISFIABLE,
        UploadError::TakenOver => StatusCode::CONFLICT,
        UploadError::Full => StatusCode::INSUFFICIENT_STORAGE,
        UploadError::Io(cause) => {
            tracing::error!(error = %cause, "failed to store an upload for a build");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    ApiError::new(status, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_field_writes_them() {
        let bytes = |first, length, total| ContentRange::Bytes(UploadRange { first, length, total });
        let read = |text: &str| content_range(text).ok();
        assert_eq!(read("bytes 0-9/100"), Some(bytes(0, 10, Some(100))));
        assert_eq!(read("bytes 90-99/100"), Some(bytes(90, 10, Some(100))));
        assert_eq!(read("bytes 5-5/*"), Some(bytes(5, 1, None)));
        assert_eq!(read("bytes */100"), Some(ContentRange::Query));
        assert_eq!(read("bytes */*"), Some(ContentRange::Query));
        for bad in [
            "",
            "bytes",
            "bytes 0-9",
            "items 0-9/10",
            "bytes 9-0/10",
            "bytes 0-10/10",
            "bytes -1/3",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
