//! One request to a port of a sandbox, and its answer back.
//! The order of checks is part of the contract: reserved path, sandbox, token, connection.
//! Nothing is retried but a request of which nothing was sent.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use control::{ENVD_PORT, Live, Waking, same_secret};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri, Version};

use crate::connection::Resetter;
use crate::guard::GuardedBody;
use crate::target::Address;
use crate::upstream::{self, Failure};
use crate::{Edge, headers, pages, tunnel};

/// How long the notice of a sandbox's end may lag behind the end of its sockets.
const NOTICE: Duration = Duration::from_millis(100);

/// Returns a request to a port of a sandbox.
pub(crate) async fn forward(
    mut request: Request<Body>,
    address: Address,
    edge: &Arc<Edge>,
    resetter: &Resetter,
) -> Response<Body> {
    let html = pages::wants_html(request.headers());
    let path = request.uri().path();
    if address.port == ENVD_PORT
        && let Some(path) = headers::reserved_path(path)
    {
        return pages::reserved(path);
    }
    let live = match edge.control.find(&address.id) {
        Some(live) => {
            if let Some(refusal) = check_token(&request, &address, live.allows_public_traffic(), edge, html) {
                return refusal;
            }
            live
        }
        None => {
            let waking = match sleeper(&request, &address, edge, html) {
                Ok(waking) => waking,
                Err(answer) => return *answer,
            };
            match edge.control.wake(waking).await {
                Ok(live) => live,
                Err(error) => {
                    tracing::warn!(sandbox_id = %address.id, %error, "a sandbox could not be woken by traffic");
                    return pages::not_found(&address, html);
                }
            }
        }
    };

    tracing::Span::current().record("team_id", tracing::field::display(live.team));
    let own_connection = request.version() != Version::HTTP_2;
    let switching = headers::upgrade_wanted(request.headers()).is_some() && own_connection;
    let client_upgrade = switching.then(|| hyper::upgrade::on(&mut request));
    let request = to_upstream(request, &address, live.mask_request_host().as_deref());
    let sent = tokio::select! {
        biased;
        sent = upstream::send(&edge.pools, &live, address.port, request, !switching) => sent,
        () = live.wait_ended() => return pages::not_found(&address, html),
    };
    let (mut response, sender) = match sent {
        Ok(sent) => sent,
        Err(failure) => return explain(&failure, &address, &live, html).await,
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
    response.map(|body| Body::new(GuardedBody::new(body, live, resetter, edge.pools.clone(), sender)))
}

/// The paused sandbox that this request may wake, if there is one and the request would be let in.
fn sleeper(
    request: &Request<Body>,
    address: &Address,
    edge: &Edge,
    html: bool,
) -> Result<Waking, Box<Response<Body>>> {
    let not_found = || Box::new(pages::not_found(address, html));
    let waking = edge.control.sleeping(&address.id).ok_or_else(not_found)?;
    if let Some(refusal) = check_token(request, address, waking.allows_public_traffic(), edge, html) {
        return Err(Box::new(refusal));
    }
    // The agent would refuse whoever has neither its token nor a signature: nobody is woken for that.
    if address.port == ENVD_PORT && !knows_agent(request, &edge.control.envd_token(&address.id)) {
        return Err(not_found());
    }
    Ok(waking)
}

fn knows_agent(request: &Request<Body>, token: &str) -> bool {
    let header = request.headers().get("x-access-token");
    let signed = request.uri().query().is_some_and(|query| query.contains("signature="));
    header.map_or(signed, |given| same_secret(given.as_bytes(), token.as_bytes()))
}

/// Ports that are not public want the sandbox's token; the agent's port has a token of its own.
fn check_token(
    request: &Request<Body>,
    address: &Address,
    is_public: bool,
    edge: &Edge,
    html: bool,
) -> Option<Response<Body>> {
    if address.port == ENVD_PORT || is_public {
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

/// Tells a sandbox that is gone from a port that is closed.
async fn explain(failure: &Failure, address: &Address, live: &Live, html: bool) -> Response<Body> {
    tracing::debug!(sandbox_id = %address.id, port = address.port, error = %failure, "no answer from a sandbox");
    let may_be_gone = match failure {
        Failure::Dial(error) => error.kind() == ErrorKind::NotConnected || address.port == ENVD_PORT,
        Failure::Http(_) => true,
    };
    // The agent is PID 1: if it does not answer, the sandbox is ending and we shall hear of it.
    if may_be_gone && tokio::time::timeout(NOTICE, live.wait_ended()).await.is_ok() {
        return pages::not_found(address, html);
    }
    match failure {
        Failure::Dial(error) if error.kind() == ErrorKind::NotConnected => pages::not_found(address, html),
        _ => pages::port_closed(address, html),
    }
}
