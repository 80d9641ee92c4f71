//! Error responses of the edge in place of a sandbox's: JSON, or HTML for browsers.
//! Texts and statuses are part of the wire contract: SDKs tell an ended sandbox from a closed port by them.
//! The HTML contains nothing that needs escaping: an id is alphanumeric, a port a number.

use axum::body::Body;
use budget::Exhausted;
use envd_api::access::AuthError;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::connection::RefusedCredentials;
use crate::target::{self, Address};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Response when the sandbox does not run.
pub(crate) fn not_found(address: &Address, html: bool) -> Response<Body> {
    sandbox_page(StatusCode::BAD_GATEWAY, address, "The sandbox was not found", None, html)
}

/// Response when the sandbox runs and nothing listens on the port.
pub(crate) fn port_closed(address: &Address, html: bool) -> Response<Body> {
    let text = "The sandbox is running but port is not open";
    sandbox_page(StatusCode::BAD_GATEWAY, address, text, Some(address.port), html)
}

/// Response when the sandbox's ports are not public and the request has no token.
pub(crate) fn token_missing(address: &Address, html: bool) -> Response<Body> {
    let text =
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing";
    sandbox_page(StatusCode::FORBIDDEN, address, text, None, html)
}

/// Response when the request's traffic token is wrong.
pub(crate) fn token_invalid(address: &Address, html: bool) -> Response<Body> {
    let text = "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' \
                is invalid";
    refused(sandbox_page(StatusCode::FORBIDDEN, address, text, None, html))
}

/// Response when a request to envd lacks its token or a signature, as envd itself would send it.
pub(crate) fn envd_refusal(error: &AuthError) -> Response<Body> {
    let status = error.status();
    let body = json!({ "code": status.as_u16(), "message": error.to_string() });
    refused(respond(status, JSON, body.to_string()))
}

/// Response when the server has no further connection to this sandbox or its team.
pub(crate) fn exhausted(error: &Exhausted) -> Response<Body> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let body = json!({ "code": status.as_u16(), "message": format!("{error}; try again later") });
    let mut response = respond(status, JSON, body.to_string());
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Marks the response as a refusal of credentials.
fn refused(mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(RefusedCredentials);
    response
}

/// Response when the path of envd is reserved for the control plane.
pub(crate) fn reserved(path: &str) -> Response<Body> {
    let text =
        "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL";
    respond(StatusCode::NOT_FOUND, JSON, json!({ "message": text, "path": path, "code": 404 }).to_string())
}

/// Response to `CONNECT`: this is no proxy for clients.
pub(crate) fn no_tunnel() -> Response<Body> {
    respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "CONNECT is not supported".to_owned())
}

/// Response when the host or the routing headers are malformed.
pub(crate) fn invalid_host(text: &'static str) -> Response<Body> {
    respond(StatusCode::BAD_REQUEST, TEXT, text.to_owned())
}

/// Response to a request that sandboxes have sent each other too many times.
pub(crate) fn request_loop() -> Response<Body> {
    respond(StatusCode::LOOP_DETECTED, TEXT, "the request goes in circles between sandboxes\n".to_owned())
}

/// Redirects a request to the same target by HTTPS. The method stays the same.
pub(crate) fn redirect<B>(request: &Request<B>, port: u16) -> Response<Body> {
    let host = target::host(request).unwrap_or_default();
    let name = target::without_port(host);
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    if name.is_empty() || !path.starts_with('/') {
        return invalid_host("Invalid host");
    }
    let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let Ok(location) = HeaderValue::from_str(&format!("https://{name}{port}{path}")) else {
        return invalid_host("Invalid host");
    };
    let mut response = respond(StatusCode::PERMANENT_REDIRECT, TEXT, "use HTTPS\n".to_owned());
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Returns the header that has browsers use HTTPS alone for this host.
pub(crate) fn hsts(seconds: u32) -> HeaderValue {
    HeaderValue::from_str(&format!("max-age={seconds}")).expect("a number is a header value")
}

fn sandbox_page(
    status: StatusCode,
    address: &Address,
    message: &str,
    port: Option<u16>,
    html: bool,
) -> Response<Body> {
    if html {
        let port = port.map(|port| format!("<p>Port {port}</p>")).unwrap_or_default();
        let page = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{message}</title></head>\
             <body><h1>{message}</h1><p>Sandbox <code>{}</code></p>{port}</body></html>",
            address.id
        );
        return respond(status, HTML, page);
    }
    let mut body = json!({ "sandboxId": address.id, "message": message, "code": status.as_u16() });
    if let (Some(port), Value::Object(fields)) = (port, &mut body) {
        fields.insert("port".to_owned(), port.into());
    }
    respond(status, JSON, body.to_string())
}

fn respond(status: StatusCode, content_type: HeaderValue, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    // Scripts of other origins may read why the sandbox does not answer.
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// Whether a browser is navigating, as opposed to a script in a browser or a program with a browser's user agent.
pub(crate) fn wants_html(request: &HeaderMap) -> bool {
    let text = |name: &str| {
        let value = request.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        value.to_ascii_lowercase()
    };
    let user_agent = text(USER_AGENT.as_str());
    let browser = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];
    if !browser.iter().any(|name| user_agent.contains(name)) {
        return false;
    }
    match text("sec-fetch-mode").as_str() {
        "navigate" => return true,
        "cors" | "no-cors" | "same-origin" | "websocket" => return false,
        _ => {}
    }
    let accept = text(ACCEPT.as_str());
    let only_json = accept.contains("application/json") && !accept.contains("text/html");
    !only_json && !request.contains_key("x-requested-with")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_navigating_browsers_get_html() {
        let cases: [(&[(&'static str, &'static str)], bool); 7] = [
            (&[], false),
            (&[("user-agent", "curl/8")], false),
            (&[("user-agent", "Mozilla/5.0")], true),
            (&[("user-agent", "Mozilla/5.0"), ("accept", "application/json")], false),
            (&[("user-agent", "Mozilla/5.0"), ("accept", "text/html,application/json")], true),
            (&[("user-agent", "Mozilla/5.0"), ("sec-fetch-mode", "cors")], false),
            (&[("user-agent", "Mozilla/5.0"), ("x-requested-with", "XMLHttpRequest")], false),
        ];
        for (headers, html) in cases {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(wants_html(&map), html, "{headers:?}");
        }
    }
}
