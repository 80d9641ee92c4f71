//! Forwards one request to a port of a sandbox and returns the response.
//! The order of checks is part of the contract: reserved path, sandbox, token, connection.
//! A request is retried only if no byte of it was sent.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use budget::Share;
use control::{RunningSandbox, WakeableSandbox, same_secret};
use hyper::header::SEC_WEBSOCKET_ACCEPT;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::clients::Client;
use crate::closing::Resetter;
use crate::connection::{self, ConnectionHandle};
use crate::credentials::{self, TRAFFIC_TOKEN};
use crate::headers::Forwarded;
use crate::response_body::ResponseBody;
use crate::target::Address;
use crate::upstream::{self, Exchange, Failure};
use crate::{Edge, headers, pages, public, tunnel};

/// How long the server may learn of a sandbox's end after the sandbox's sockets were closed.
const END_NOTICE_DELAY: Duration = Duration::from_millis(100);

/// Forwards a request to a port of a sandbox. Returns the sandbox's response, or an error page of ours.
pub(crate) async fn forward(
    mut request: Request<Body>,
    address: Address,
    edge: &Arc<Edge>,
    connection: &ConnectionHandle,
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
            if let Some(response) = refusal(&request, &address, live.allows_public_traffic(), edge, html) {
                return response;
            }
            live
        }
        None => {
            let paused = match paused_target(&request, &address, edge, html) {
                Ok(paused) => paused,
                Err(response) => return *response,
            };
            match edge.control.wake(paused).await {
                Ok(live) => live,
                Err(error) => {
                    tracing::warn!(sandbox_id = %address.id, %error, "failed to resume a sandbox for a request");
                    return pages::not_found(&address, html);
                }
            }
        }
    };

    tracing::Span::current().record("team_id", tracing::field::display(live.team));
    note_credentials(&request, &address, &live, edge, &connection.client);
    let own_connection = request.version() != Version::HTTP_2;
    let is_websocket = connection::is_websocket(&request);
    let switching = is_websocket || headers::requested_upgrade(request.headers()).is_some() && own_connection;
    let client_upgrade = switching.then(|| hyper::upgrade::on(&mut request));
    let is_grpc = !own_connection && address.port != envd_api::PORT && headers::is_grpc(request.headers());
    if is_websocket {
        *request.method_mut() = Method::GET;
        headers::begin_websocket(request.headers_mut());
    }
    let forwarded = edge.config.forwarded_headers.then(|| Forwarded {
        client: public::client_address(&request, &edge.config, connection.origin),
        scheme: public::scheme(&request, connection.origin),
    });
    let mask = live.mask_request_host();
    let request = to_upstream(request, &address, edge, mask.as_deref(), forwarded.as_ref());
    let how = match (is_grpc, switching) {
        (true, _) => Exchange::Http2,
        (false, true) => Exchange::Once,
        (false, false) => Exchange::Reusable,
    };
    let sent = tokio::select! {
        biased;
        sent = upstream::send(edge, &live, address.port, request, how) => sent,
        () = live.wait_ended() => return pages::not_found(&address, html),
    };
    let (mut response, sender) = match sent {
        Ok(sent) => sent,
        Err(Failure::Exhausted(error)) => return pages::exhausted(&error),
        Err(failure) => return failure_page(&failure, &address, &live, html).await,
    };

    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::to_client(response.headers_mut(), switched && own_connection);
    *response.version_mut() = Version::default();
    if switched {
        let Some(client) = client_upgrade else { return pages::port_closed(&address, html) };
        let server = hyper::upgrade::on(&mut response);
        let share = response.extensions_mut().remove::<Arc<Share>>();
        let active = connection.client.begin_request();
        // Of HTTP/2 the stream ends alone, without the websocket's own farewell.
        let resetter = if own_connection { connection.resetter.clone() } else { Resetter::default() };
        let tunnel = tunnel::run(client, server, live, resetter, share, edge.cut.clone());
        edge.tasks.spawn(async move {
            tunnel.await;
            drop(active);
        });
        if !own_connection {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        }
        return response.map(|_| Body::empty());
    }
    let resetter = own_connection.then(|| connection.resetter.clone());
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
    let paused = edge.control.find_wakeable(&address.id).ok_or_else(not_found)?;
    let token = edge.control.envd_token(&address.id);
    if address.port == envd_api::PORT && !credentials::has_envd_credentials(request, &token) {
        return Err(not_found());
    }
    if let Some(response) = refusal(request, address, paused.allows_public_traffic(), edge, html) {
        return Err(Box::new(response));
    }
    Ok(paused)
}

/// Returns the response to send if the request lacks the credentials that its port demands: envd's token or a signature, or
/// the traffic token where ports are not public.
fn refusal(
    request: &Request<Body>,
    address: &Address,
    is_public: bool,
    edge: &Edge,
    html: bool,
) -> Option<Response<Body>> {
    if address.port == envd_api::PORT {
        let checked = credentials::authorize_envd(request, &edge.control.envd_token(&address.id));
        return checked.err().map(|error| pages::envd_refusal(&error));
    }
    if is_public {
        return None;
    }
    let Some(token) = request.headers().get(TRAFFIC_TOKEN) else {
        return Some(pages::token_missing(address, html));
    };
    let expected = edge.control.traffic_token(&address.id);
    (!same_secret(token.as_bytes(), expected.as_bytes())).then(|| pages::token_invalid(address, html))
}

/// Tells the connection's place in the table of clients what this permitted request has shown.
fn note_credentials(
    request: &Request<Body>,
    address: &Address,
    live: &RunningSandbox,
    edge: &Edge,
    client: &Client,
) {
    if client.is_authenticated() {
        return;
    }
    let has_credentials = if address.port == envd_api::PORT {
        credentials::has_envd_credentials(request, &edge.control.envd_token(&address.id))
    } else {
        !live.allows_public_traffic()
    };
    let team = live.team.as_u128();
    if has_credentials { client.authenticate(team) } else { client.visit(team) }
}

fn to_upstream(
    request: Request<Body>,
    address: &Address,
    edge: &Edge,
    mask: Option<&str>,
    forwarded: Option<&Forwarded>,
) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    if address.port == envd_api::PORT {
        credentials::remove_signature(&mut parts);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    // The rest has the spelling of header names.
    parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let control = &edge.control;
    let (token, inner_token) = (control.envd_token(&address.id), control.inner_token(&address.id));
    credentials::strip_headers(&mut parts.headers, &token, &inner_token);
    headers::to_upstream(&mut parts.headers, address, mask, forwarded);
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
        Failure::Exhausted(_) => false,
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
