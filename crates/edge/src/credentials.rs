//! The secrets that clients send with requests to sandboxes. They are checked here, in the server, and never passed into a sandbox. Memory and files
//! of a sandbox may become a snapshot that others start, so nothing in them may open a sandbox, or the control plane.

use axum::body::Body;
use control::{KEY_PREFIX, same_secret};
use envd_api::access::{self, AuthError};
use envd_api::headers::{ACCESS_TOKEN, BY_LINK};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Uri};

/// Carries the traffic token of a sandbox whose ports are not public.
pub(crate) const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Checks the credentials of a request to envd by the rules of envd's contract.
///
/// # Errors
/// It lacks the sandbox's envd token and a valid signature.
pub(crate) fn authorize_envd(request: &Request<Body>, token: &str) -> Result<(), AuthError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let uri = request.uri();
    access::authorize(request.method(), uri.path(), uri.query(), request.headers(), token, now)
}

/// Returns whether a request proves that its sender knows the sandbox's envd token, by the token itself or a signature. A request
/// without either does not, even if envd would answer it, such as `GET /health`.
pub(crate) fn has_envd_credentials(request: &Request<Body>, token: &str) -> bool {
    let is_signed = request.uri().query().is_some_and(|query| query.contains("signature="));
    let given = request.headers().get(ACCESS_TOKEN);
    given.map_or(is_signed, |given| same_secret(given.as_bytes(), token.as_bytes()))
        && authorize_envd(request, token).is_ok()
}

/// Removes the traffic token and API keys of ours, and replaces the envd token by `inner_token`, which is worth nothing outside the
/// sandbox. Headers of the same names with other values are the application's own and stay.
pub(crate) fn strip_headers(headers: &mut HeaderMap, token: &str, inner_token: &str) {
    headers.remove(TRAFFIC_TOKEN);
    if headers.get_all(API_KEY).iter().any(|key| key.as_bytes().starts_with(KEY_PREFIX.as_bytes())) {
        headers.remove(API_KEY);
    }
    let is_envd_token = |given: &HeaderValue| same_secret(given.as_bytes(), token.as_bytes());
    if headers.get_all(ACCESS_TOKEN).iter().any(is_envd_token) {
        let inner = HeaderValue::from_str(inner_token).expect("a hexadecimal token is a header value");
        headers.insert(ACCESS_TOKEN, inner);
    }
}

/// Removes the signature of a link from a checked request to envd, and notes in a header that there was no token besides. A signature
/// that reached the sandbox could become part of a snapshot, whose users could then open the link in the original sandbox.
pub(crate) fn remove_signature(request: &mut Parts) {
    let Some(query) = request.uri.query() else { return };
    let rest = access::without_signature(query);
    if rest != query && !request.headers.contains_key(ACCESS_TOKEN) {
        request.headers.insert(BY_LINK, HeaderValue::from_static("true"));
    }
    let path = request.uri.path();
    let path_and_query = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        request.uri = Uri::from(path_and_query);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_secrets_are_removed() {
        let headers = |list: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            list.iter().map(pair).collect::<HeaderMap>()
        };
        let mut ours = headers(&[
            ("e2b-traffic-access-token", "t"),
            ("x-access-token", "secret"),
            ("x-api-key", "e2b_0123"),
            ("x-kept", "1"),
        ]);
        strip_headers(&mut ours, "secret", "inner");
        assert_eq!(ours, headers(&[("x-access-token", "inner"), ("x-kept", "1")]));

        let application = headers(&[("x-access-token", "its own"), ("x-api-key", "its own")]);
        let mut passed_on = application.clone();
        strip_headers(&mut passed_on, "secret", "inner");
        assert_eq!(passed_on, application);
    }

    #[test]
    fn signatures_do_not_reach_envd() {
        let checked = |uri: &str, headers: &[(&str, &str)]| {
            let request = headers
                .iter()
                .fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
            let (mut parts, ()) = request.body(()).expect("a request").into_parts();
            remove_signature(&mut parts);
            (parts.uri.to_string(), parts.headers.contains_key(BY_LINK))
        };
        let whole = "/files?path=a%20b&signature=v1_x&signature_expiration=1";
        assert_eq!(checked(whole, &[]), ("/files?path=a%20b".to_owned(), true));
        assert_eq!(checked(whole, &[("x-access-token", "t")]), ("/files?path=a%20b".to_owned(), false));
        assert_eq!(checked("/files?signature=v1_x", &[]), ("/files".to_owned(), true));
        assert_eq!(checked("/files", &[]), ("/files".to_owned(), false));
    }
}
