//! Forwards one request to a port of a sandbox and returns the response.
//! The order of checks is part of the contract: reserved path, sandbox, token, connection.
//! Only a request of which nothing was sent is retried.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use control::{RunningSandbox, WakeableSandbox, same_secret};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri, Version};

use crate::connection::Resetter;
use crate::response_body::ResponseBody;
use crate::target::Address;
use crate::upstream::{self, Failure};
use crate::{Edge, headers, pages, tunnel};

/// How long the news of a sandbox's end may lag behind the end of its sockets.
const END_NOTICE_DELAY: Duration = Duration::from_millis(100);

/// Forwards a request to a port of a sandbox. Returns the sandbox's response, or an error page of ours.
pub(crate) async fn forward(
    mut request: Request<Body>,
    address: Address,
    edge: &Arc<Edge>,
    resetter: &Resetter,
) -> Response<Body> {
    let html = pages::wants_html(request.headers());
    let path = request.uri().path();
    if address.port == envd_api::PORT
        && let Some(path) = headers::reserved_path(path)
    {
        return pages::reserved(path);
    }
    let live = match edge.control.find_running(&address.id) {
        Some(live) => {
            if let Some(refusal) = check_token(&request, &address, live.allows_public_traffic(), edge, html) {
                return refusal;
            }
            live
        }
        None => {
            let waking = match paused_target(&request, &address, edge, html) {
                Ok(waking) => waking,
                Err(response) => return *response,
            };
            match edge.control.wake(waking).await {
                Ok(live) => live,
                Err(error) => {
                    tracing::warn!(sandbox_id = %address.id, %error, "failed to resume a sandbox for a request");
                    return pages::not_found(&address, html);
                }
            }
        }
    };

    tracing::Span::current().record("team_id", tracing::field::display(live.team));
    let own_connection = request.version() != Version::HTTP_2;
    let switching = headers::requested_upgrade(request.headers()).is_some() && own_connection;
    let client_upgrade = switching.then(|| hyper::upgrade::on(&mut request));
    let request = to_upstream(request, &address, live.mask_request_host().as_deref());
    let sent = tokio::select! {
        biased;
        sent = upstream::send(&edge.idle, &live, address.port, request, !switching) => sent,
        () = live.wait_ended() => return pages::not_found(&address, html),
    };
    let (mut response, sender) = match sent {
        Ok(sent) => sent,
        Err(failure) => return failure_page(&failure, &address, &live, html).await,
    };

    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::to_client(response.headers_mut(), switched);
    *response.version_mut() = Version::default();
    if switched {
        let Some(client) = client_upgrade else { return pages::port_closed(&address, html) };
        let server = hyper::upgrade::on(&mut response);
        let tunnel = tunnel::run(client, server, live, resetter.clone(), edge.cut.clone());
        edge.tasks.spawn(tunnel);
        return response.map(|_| Body::empty());
    }
    let resetter = own_connection.then(|| resetter.clone());
    response.map(|body| Body::new(ResponseBody::new(body, live, resetter, edge.idle.clone(), sender)))
}

/// Returns the paused sandbox that this request may resume. The error is the response to send if there is none or the
/// request would be refused.
fn paused_target(
    request: &Request<Body>,
    address: &Address,
    edge: &Edge,
    html: bool,
) -> Result<WakeableSandbox, Box<Response<Body>>> {
    let not_found = || Box::new(pages::not_found(address, html));
    let waking = edge.control.find_wakeable(&address.id).ok_or_else(not_found)?;
    if let Some(refusal) = check_token(request, address, waking.allows_public_traffic(), edge, html) {
        return Err(Box::new(refusal));
    }
    // envd would refuse a request with neither its token nor a signature: no reason to resume a sandbox.
    if address.port == envd_api::PORT && !has_envd_credentials(request, &edge.control.envd_token(&address.id))
    {
        return Err(not_found());
    }
    Ok(waking)
}

fn has_envd_credentials(request: &Request<Body>, token: &str) -> bool {
    let header = request.headers().get(envd_api::headers::ACCESS_TOKEN);
    let signed = request.uri().query().is_some_and(|query| query.contains("signature="));
    header.map_or(signed, |given| same_secret(given.as_bytes(), token.as_bytes()))
}

/// Returns the response to send if the sandbox's ports are not public and the request lacks its traffic token. envd's
/// port is exempt: envd checks a token of its own.
fn check_token(
    request: &Request<Body>,
    address: &Address,
    is_public: bool,
    edge: &Edge,
    html: bool,
) -> Option<Response<Body>> {
    if address.port == envd_api::PORT || is_public {
        return None;
    }
    let Some(token) = request.headers().get("e2b-traffic-access-token") else {
        return Some(pages::token_missing(address, html));
    };
    let expected = edge.control.traffic_token(&address.id);
    (!same_secret(token.as_bytes(), expected.as_bytes())).then(|| pages::token_invalid(address, html))
}

fn to_upstream(request: Request<Body>, address: &Address, mask: Option<&str>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    headers::to_upstream(&mut parts.headers, address, mask);
    Request::from_parts(parts, body)
}

/// Returns the response to a failed request: the sandbox has ended, or the port is closed.
async fn failure_page(
    failure: &Failure,
    address: &Address,
    live: &RunningSandbox,
    html: bool,
) -> Response<Body> {
    tracing::debug!(sandbox_id = %address.id, port = address.port, error = %failure, "no response from a sandbox");
    let may_be_gone = match failure {
        Failure::Dial(error) => error.kind() == ErrorKind::NotConnected || address.port == envd_api::PORT,
        Failure::Http(_) => true,
    };
    // envd is PID 1: if it does not answer, the sandbox is ending and the news will follow.
    if may_be_gone && tokio::time::timeout(END_NOTICE_DELAY, live.wait_ended()).await.is_ok() {
        return pages::not_found(address, html);
    }
    match failure {
        Failure::Dial(error) if error.kind() == ErrorKind::NotConnected => pages::not_found(address, html),
        _ => pages::port_closed(address, html),
    }
}
