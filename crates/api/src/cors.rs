//! Cross-origin requests of browsers are allowed from every origin: credentials are in headers that a page must set itself, never
//! in cookies. Preflight requests need no credential. Response headers that the SDKs read are exposed.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Origin,Content-Length,Content-Type,User-Agent,Authorization,X-API-Key,X-Team-ID,X-Admin-Token,Idempotency-Key,\
     browser,lang,lang_version,machine,os,package_version,processor,publisher,release,sdk_runtime,system",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "X-Next-Token,X-Total-Running,RateLimit-Limit,RateLimit-Remaining,RateLimit-Reset,Retry-After,Should-Retry",
);
/// How long a browser may cache a preflight's response: twelve hours, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("43200");

/// Answers preflight requests, and allows all origins in responses to cross-origin requests.
pub(crate) async fn cors(request: Request, next: Next) -> Response {
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let requested_headers = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let is_cross_origin = request.headers().contains_key(header::ORIGIN);
    if is_preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        allow(headers);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested_headers.unwrap_or(REQUEST_HEADERS));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        return response;
    }
    let mut response = next.run(request).await;
    if is_cross_origin {
        allow(response.headers_mut());
    }
    response
}

fn allow(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
}
