//! HTTP: `/mcp` (streamable HTTP) behind the bearer token, `/health` without it. Connections and sessions are limited.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::gateway::Gateway;
use crate::handler::Handler;
use crate::limits::{HEAD_TIMEOUT, MAX_CONNECTIONS, MAX_REQUEST_BYTES, MAX_SESSIONS, SESSION_IDLE};

const SESSION_HEADER: &str = "mcp-session-id";

/// Who may come in, and the sessions that there are.
#[derive(Clone)]
struct Front {
    token: Arc<str>,
    sessions: Arc<LocalSessionManager>,
    used: Arc<Mutex<HashMap<String, Instant>>>,
}

/// Takes the gateway's port.
///
/// # Errors
/// Something else has it.
pub(crate) fn listen(port: u16) -> Result<TcpListener, Error> {
    let taken = |source| Error::Port { port, source };
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(taken)?;
    listener.set_nonblocking(true).map_err(taken)?;
    TcpListener::from_std(listener).map_err(taken)
}

/// Serves clients, for ever.
pub(crate) async fn serve(listener: TcpListener, gateway: Arc<Gateway>, token: String) {
    let router = router(gateway, &token);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection is not accepted: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn router(gateway: Arc<Gateway>, token: &str) -> Router {
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SESSION_IDLE);
    let sessions = Arc::new(sessions);
    // Any host: sandboxes have public names, and a browser's request is recognised by its origin.
    let config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .with_max_request_body_bytes(MAX_REQUEST_BYTES);
    let mcp = StreamableHttpService::new(move || Ok(Handler(gateway.clone())), sessions.clone(), config);
    let front = Front { token: token.into(), sessions, used: Arc::default() };
    let guarded = Router::new().route_service("/mcp", mcp).layer(from_fn_with_state(front, guard));
    guarded
        .route("/", get(|| async { Redirect::temporary("/mcp") }))
        .route("/health", get(|| async { axum::Json(serde_json::json!({"status": "ok"})) }))
}

async fn guard(State(front): State<Front>, request: Request, next: Next) -> Response {
    if foreign_origin(request.headers()) {
        return (StatusCode::FORBIDDEN, "Forbidden: requests of web pages are not accepted").into_response();
    }
    if !has_token(request.headers(), &front.token) {
        return (
            StatusCode::UNAUTHORIZED,
            [(WWW_AUTHENTICATE, "Bearer realm=\"MCP Gateway\"")],
            "Unauthorized",
        )
            .into_response();
    }
    match request.headers().get(SESSION_HEADER).and_then(|id| id.to_str().ok()) {
        Some(id) => front.touch(id),
        None if request.method() == Method::POST => front.make_room().await,
        None => {}
    }
    let response = next.run(request).await;
    if let Some(id) = response.headers().get(SESSION_HEADER).and_then(|id| id.to_str().ok()) {
        front.touch(id);
    }
    response
}

impl Front {
    /// Notes that a session is used. Names of no session are forgotten with the next new one; they are as limited as sessions.
    fn touch(&self, id: &str) {
        let mut used = self.used.lock();
        if used.len() < 2 * MAX_SESSIONS || used.contains_key(id) {
            used.insert(id.to_owned(), Instant::now());
        }
    }

    /// Closes the session that was used least recently if there are as many as there may be.
    async fn make_room(&self) {
        let ids: Vec<_> = self.sessions.sessions.read().await.keys().cloned().collect();
        let oldest = {
            let mut used = self.used.lock();
            used.retain(|id, _| ids.iter().any(|other| **other == **id));
            // One that was never used is older than all others.
            ids.iter().min_by_key(|id| used.get(&***id).copied()).cloned()
        };
        if ids.len() >= MAX_SESSIONS
            && let Some(oldest) = oldest
        {
            tracing::info!("a session is closed: there are {MAX_SESSIONS}");
            let _ = self.sessions.close_session(&oldest).await;
        }
    }
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((scheme, given)) = given.split_once(' ') else { return false };
    scheme.eq_ignore_ascii_case("bearer") && bool::from(given.trim().as_bytes().ct_eq(token.as_bytes()))
}

/// Whether a request is from a web page of another host. Pages on loopback are the user's own tools.
fn foreign_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.parse::<Uri>().ok())
        .and_then(|uri| uri.host().map(str::to_owned));
    let loopback = |host: &str| {
        let address = host.trim_matches(['[', ']']);
        host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    !host.as_deref().is_some_and(loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a header's value"))])
    }

    #[test]
    fn only_the_token_opens() {
        for (value, opens) in [
            ("Bearer t", true),
            ("bearer t", true),
            ("Bearer tt", false),
            ("t", false),
            ("Basic t", false),
            ("", false),
        ] {
            assert_eq!(has_token(&headers(AUTHORIZATION, value), "t"), opens, "{value}");
        }
        assert!(!has_token(&HeaderMap::new(), "t"));
    }

    #[test]
    fn web_pages_of_other_hosts_are_refused() {
        for (value, foreign) in [
            ("http://localhost:6274", false),
            ("http://127.0.0.1", false),
            ("http://[::1]:80", false),
            ("https://example.com", true),
            ("http://localhost.example.com", true),
            ("null", true),
        ] {
            assert_eq!(foreign_origin(&headers(ORIGIN, value)), foreign, "{value}");
        }
        assert!(!foreign_origin(&HeaderMap::new()));
    }
}
