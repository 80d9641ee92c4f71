//! Browsers may call from anywhere: the key is the only credential, and it is never ambient.
//! Preflights are answered for every path without asking for a key.
//! The headers the SDKs read are exposed.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Origin,Content-Length,Content-Type,User-Agent,Authorization,X-API-Key,X-Team-ID,X-Admin-Token,Idempotency-Key,\
     browser,lang,lang_version,machine,os,package_version,processor,publisher,release,sdk_runtime,system",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "X-Next-Token,X-Total-Running,RateLimit-Limit,RateLimit-Remaining,RateLimit-Reset,Retry-After,Should-Retry",
);
/// Twelve hours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("43200");

pub(crate) async fn cors(request: Request, next: Next) -> Response {
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let from_elsewhere = request.headers().contains_key(header::ORIGIN);
    if preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        allow(headers);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(REQUEST_HEADERS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        return response;
    }
    let mut response = next.run(request).await;
    if from_elsewhere {
        allow(response.headers_mut());
    }
    response
}

fn allow(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}
