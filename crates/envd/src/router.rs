//! Routes requests to their handlers, after the cross-origin rules and the token check.
//! Preflights and health checks need no token; `/init` and file links have their own checks.

use std::sync::Arc;
use std::time::Duration;

use body_drain::{DrainLimits, DrainableBody};
use connectrpc::dispatcher::Chain;
use connectrpc::{ConnectError, ConnectRpcService, DeadlinePolicy, Limits, RequestContext};
use envd_api::filesystem::FilesystemServer;
use envd_api::headers::{ACCESS_TOKEN, BY_LINK};
use envd_api::paths;
use envd_api::process::ProcessServer;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW,
    CACHE_CONTROL, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::Service;

use crate::auth::{self, AuthError, Peer};
use crate::filesystem::service::Files;
use crate::logs::Level;
use crate::process::service::Processes;
use crate::rest::{
    Body, RestError, body_reader, compose, files_get, files_post, init, json, metrics, no_content,
};
use crate::state::Envd;
use crate::users::User;
use crate::{clock, logs};
use envd_api::query::Query;

/// Maximum size of a message: input to a process is one message.
const MAX_MESSAGE: usize = 64 << 20;
/// How much is read of an upload that has its response already: all of it, if it arrives in time.
const DRAIN_LIMITS: DrainLimits = DrainLimits { bytes: u64::MAX, time: Duration::from_secs(60) };

type Rpc = ConnectRpcService<Chain<ProcessServer<Processes>, FilesystemServer<Files>>>;

/// The routes of envd.
#[derive(Clone)]
pub struct Router {
    envd: Arc<Envd>,
    rpc: Rpc,
}

impl Router {
    /// Makes the routes over a state.
    pub fn new(envd: Arc<Envd>) -> Self {
        let processes = ProcessServer::new(Processes(Arc::clone(&envd)));
        let files = FilesystemServer::new(Files(Arc::clone(&envd)));
        let limits = Limits::default()
            .with_max_message_size(MAX_MESSAGE)
            .with_max_request_body_size(MAX_MESSAGE)
            .with_element_memory_limit(2 * MAX_MESSAGE);
        // A stream ends at its deadline with `deadline_exceeded`; a process is killed at the same moment.
        let rpc = ConnectRpcService::new(Chain(processes, files))
            .with_limits(limits)
            .with_deadline_policy(DeadlinePolicy::new().with_enforce_on_streams(true));
        Self { envd, rpc }
    }

    /// Handles a request of `peer` and returns the response.
    pub async fn handle(&mut self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let cross_origin = request.headers().contains_key(ORIGIN);
        if request.method() == Method::OPTIONS {
            return preflight(request.headers());
        }
        let (request, drain) = body_drain::drainable(request);
        let mut response = self.route(request, peer).await.unwrap_or_else(|error| error.response());
        drain.finish(DRAIN_LIMITS).await;
        if cross_origin {
            allow_origin(response.headers_mut());
        }
        response
    }

    async fn route(
        &mut self,
        request: Request<DrainableBody>,
        peer: Peer,
    ) -> Result<Response<Body>, RestError> {
        self.authorize(&request, peer)?;
        let method = request.method();
        let path = request.uri().path();
        if path.starts_with(paths::PROCESS_SERVICE) || path.starts_with(paths::FILESYSTEM_SERVICE) {
            let Ok(response) = self.rpc.call(request).await;
            return Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync()));
        }
        if let Some(user) = auth::basic_user(request.headers()) {
            self.envd.user(Some(&user))?;
        }
        let allowed = match (method, path) {
            (&Method::GET, paths::HEALTH) => return Ok(health()),
            (&Method::GET, paths::FILES) => return self.download(&request).await,
            (&Method::POST, paths::FILES) => return self.upload(request).await,
            (&Method::POST, paths::FILES_COMPOSE) => return self.compose(request).await,
            (&Method::GET, paths::ENVS) => return Ok(json(&self.envd.settings().all_env())),
            (&Method::GET, paths::METRICS) => return self.metrics().await,
            (&Method::GET, paths::LOGS) => return Ok(logs::stream(Arc::clone(&self.envd))),
            (&Method::POST, paths::INIT) => {
                let (parts, body) = request.into_parts();
                return init::post(&self.envd, &parts.headers, body, peer).await;
            }
            (_, paths::HEALTH | paths::ENVS | paths::METRICS | paths::LOGS) => "GET",
            (_, paths::FILES) => "GET, POST",
            (_, paths::FILES_COMPOSE | paths::INIT) => "POST",
            _ => return Err(RestError::new(StatusCode::NOT_FOUND, "not found")),
        };
        let mut response = RestError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed").response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        Ok(response)
    }

    /// Refuses a request that its sender may not make. What the server passes on it has checked itself.
    fn authorize(&self, request: &Request<DrainableBody>, peer: Peer) -> Result<(), AuthError> {
        let (method, uri) = (request.method(), request.uri());
        let is_init = method == Method::POST && uri.path() == paths::INIT;
        let token = self.envd.settings().token.clone();
        let token = match (peer, token) {
            (Peer::Server, _) | (Peer::Unknown, None) => return Ok(()),
            // Its own rules are in `init`: the first request sets the token.
            (Peer::Unknown, _) if is_init => return Ok(()),
            (Peer::Sandbox, _) if is_init => return Err(AuthError::Token),
            // Before a token is set, there is none that could be given.
            (Peer::Sandbox, None) if uri.path() != paths::HEALTH => return Err(AuthError::Token),
            (_, token) => token.unwrap_or_default(),
        };
        auth::authorize(method, uri.path(), uri.query(), request.headers(), &token, clock::unix_seconds())
    }

    fn rest_user(&self, named: Option<&str>, headers: &HeaderMap) -> Result<User, RestError> {
        let named =
            named.filter(|name| !name.is_empty()).map(str::to_owned).or_else(|| auth::basic_user(headers));
        self.envd.user(named.as_deref()).map_err(|error| match named {
            Some(name) => {
                let message = format!("error looking up user '{name}': user: unknown user {name}");
                RestError::new(StatusCode::UNAUTHORIZED, message)
            }
            None => error.into(),
        })
    }

    /// Returns the user of a file request. The signature of a link covers the user in it, so no header may name another.
    fn file_user(&self, query: &Query, headers: &HeaderMap) -> Result<User, RestError> {
        let named = query.get("username");
        if is_by_link(query, headers) {
            self.rest_user(named, &HeaderMap::new())
        } else {
            self.rest_user(named, headers)
        }
    }

    async fn download(&self, request: &Request<DrainableBody>) -> Result<Response<Body>, RestError> {
        let query = Query::parse(request.uri().query());
        let user = self.file_user(&query, request.headers())?;
        let workdir = self.envd.settings().default_workdir.clone();
        let path = crate::paths::resolve(query.get("path").unwrap_or(""), &user.home, workdir.as_deref())?;
        let shown = path.display().to_string();
        self.envd.logs.add(
            Level::Debug,
            "files",
            "download",
            &[("path", shown), ("username", user.name.clone())],
        );
        files_get::get(path, user, request.headers()).await
    }

    async fn upload(&self, request: Request<DrainableBody>) -> Result<Response<Body>, RestError> {
        let query = Query::parse(request.uri().query());
        let user = self.file_user(&query, request.headers())?;
        let workdir = self.envd.settings().default_workdir.clone();
        let named = query.get("path").unwrap_or("").to_owned();
        self.envd.logs.add(
            Level::Debug,
            "files",
            "upload",
            &[("path", named), ("username", user.name.clone())],
        );
        let path = query.get("path").map(str::to_owned);
        let by_link = is_by_link(&query, request.headers());
        let upload = files_post::Upload { user, path, workdir, by_link };
        let (parts, body) = request.into_parts();
        files_post::post(upload, &parts.headers, body).await
    }

    async fn compose(&self, request: Request<DrainableBody>) -> Result<Response<Body>, RestError> {
        let (parts, body) = request.into_parts();
        let body = body_reader::collect(body, &parts.headers, 1 << 20).await?;
        let request: compose::Request = serde_json::from_slice(&body)
            .map_err(|error| RestError::bad_request(format!("invalid request body: {error}")))?;
        if request.destination.is_empty() {
            return Err(RestError::bad_request("destination must not be empty"));
        }
        let user = self.rest_user(request.username.as_deref(), &parts.headers)?;
        let resolve = |path: &str| crate::paths::resolve(path, &user.home, None);
        let destination = resolve(&request.destination)?;
        let sources = request.source_paths.iter().map(|path| resolve(path)).collect::<Result<Vec<_>, _>>()?;
        tokio::task::spawn_blocking(move || compose::compose(&sources, &destination, &user)).await?
    }

    async fn metrics(&self) -> Result<Response<Body>, RestError> {
        let envd = Arc::clone(&self.envd);
        let limits = envd.settings().limits;
        let metrics = tokio::task::spawn_blocking(move || metrics::read(&envd.cpu, limits)).await?;
        Ok(json(&metrics))
    }
}

/// Whether a signed link authorizes a file request, and no token does.
fn is_by_link(query: &Query, headers: &HeaderMap) -> bool {
    let is_signed = query.get("signature").is_some_and(|signature| !signature.is_empty());
    headers.contains_key(BY_LINK) || is_signed && !headers.contains_key(ACCESS_TOKEN)
}

/// Returns the user an RPC acts as.
pub fn caller(envd: &Envd, ctx: &RequestContext) -> Result<User, ConnectError> {
    let named = auth::basic_user(ctx.headers());
    envd.user(named.as_deref()).map_err(|error| ConnectError::unauthenticated(error.to_string()))
}

/// Checks that the user an RPC names exists, for methods that act as no user.
pub fn check_caller(envd: &Envd, ctx: &RequestContext) -> Result<(), ConnectError> {
    if auth::basic_user(ctx.headers()).is_some() { caller(envd, ctx).map(drop) } else { Ok(()) }
}

fn health() -> Response<Body> {
    let mut response = no_content();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn preflight(request: &HeaderMap) -> Response<Body> {
    let mut response = no_content();
    let headers = response.headers_mut();
    allow_origin(headers);
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("HEAD, GET, POST, PUT, PATCH, DELETE"),
    );
    if let Some(wanted) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    response
}

fn allow_origin(headers: &mut HeaderMap) {
    const EXPOSED: &str = "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, \
        X-Content-Type-Options, Content-Length, Content-Range, ETag";
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.append(VARY, HeaderValue::from_static("Origin"));
}
