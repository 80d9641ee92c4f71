//! The HTTP interface: routes and error responses.
//! It listens only once Python and JavaScript are ready, so that a client that can connect can run code at once.
//! Bodies and texts are those that E2B's clients expect.

mod cors;
mod validate;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::args::Serve;
use crate::contexts::Contexts;
use crate::envd::{self, EnvResponse};
use crate::error::Error;
use crate::event::ascii_json;
use crate::files;
use crate::language::Language;
use crate::reaper::Reaper;
use crate::run::{Run, run};

/// Maximum size of a body, bytes: code may contain data.
const MAX_BODY: usize = 256 << 20;

/// Maximum number of lines that wait for a client.
const LINES: usize = 64;

#[derive(Debug, Clone)]
struct App {
    contexts: Arc<Contexts>,
    envd: SocketAddr,
}

/// Serves until a signal terminates it.
pub(crate) async fn serve(args: Serve) -> Result<(), Error> {
    files::write(&args.home)?;
    let reaper = Reaper::start(&args.running)?;
    let contexts = Arc::new(Contexts::new(&args, reaper));
    contexts.warm().await?;
    let app = App { contexts: Arc::clone(&contexts), envd: args.envd };
    let failed = |source| Error::Listen { address: args.listen, source };
    let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // The reader of the output may have gone.
    let _ = writeln!(std::io::stdout(), "listening on {address}");
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
    tokio::select! {
        done = axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Events are small and must go out at once.
            let _ = stream.set_nodelay(true);
        }), router(app)) => done.map_err(failed),
        _ = terminate.recv() => { contexts.close().await; Ok(()) }
        _ = interrupt.recv() => { contexts.close().await; Ok(()) }
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route("/health", get(async || json_response(StatusCode::OK, &json!("OK"))))
        .route("/execute", post(execute))
        .route("/contexts", get(list).post(create))
        .route("/contexts/{id}", delete(remove))
        .route("/contexts/{id}/restart", post(restart))
        .fallback(async || json_response(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})))
        .method_not_allowed_fallback(async || {
            json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}))
        })
        .layer(axum::middleware::from_fn(cors::layer))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

async fn execute(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let request = match validate::execute(&body) {
        Ok(request) => request,
        Err(detail) => return unprocessable(&detail),
    };
    match app.ask_envd(&headers).await {
        EnvResponse::Env(env) => app.contexts.set_global(env),
        EnvResponse::Absent => {}
        refusal => return refused(&refusal),
    }
    let context = match (&request.context_id, &request.language) {
        (Some(_), Some(_)) => {
            return text(StatusCode::BAD_REQUEST, "Only one of context_id or language can be provided");
        }
        (Some(id), None) => match app.contexts.get(id).await {
            Some(context) => context,
            None => return no_context(id),
        },
        (None, language) => {
            let language = match parse(language.as_deref()) {
                Ok(language) => language,
                Err(error) => return failed("create context", &error),
            };
            match app.contexts.default_for(language).await {
                Ok(context) => context,
                Err(error) => return failed("create context", &error),
            }
        }
    };
    let (lines, answer) = mpsc::channel(LINES);
    let wanted = Run { code: request.code, env: request.env_vars, limit: request.timeout };
    tokio::spawn(run(Arc::clone(&app.contexts), context, wanted, lines));
    Response::new(Body::from_stream(ReceiverStream::new(answer).map(Ok::<_, std::convert::Infallible>)))
}

async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    if let Some(refused) = app.refuse_wrong_token(&headers).await {
        return refused;
    }
    let all: Vec<Value> = app.contexts.list().iter().map(|context| context.to_json()).collect();
    json_response(StatusCode::OK, &all.into())
}

async fn create(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let request = match validate::create(&body) {
        Ok(request) => request,
        Err(detail) => return unprocessable(&detail),
    };
    if let Some(refused) = app.refuse_wrong_token(&headers).await {
        return refused;
    }
    let language = match parse(request.language.as_deref()) {
        Ok(language) => language,
        Err(error) => return failed("create context", &error),
    };
    match app.contexts.create(language, request.cwd.as_deref()).await {
        Ok(context) => json_response(StatusCode::OK, &context.to_json()),
        Err(error) => failed("create context", &error),
    }
}

async fn remove(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    if let Some(refused) = app.refuse_wrong_token(&headers).await {
        return refused;
    }
    let Some(context) = app.contexts.get(&id).await else { return no_context(&id) };
    app.contexts.remove(&context).await;
    json_response(StatusCode::OK, &Value::Null)
}

async fn restart(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    if let Some(refused) = app.refuse_wrong_token(&headers).await {
        return refused;
    }
    let Some(context) = app.contexts.get(&id).await else { return no_context(&id) };
    match app.contexts.restart(&context).await {
        Ok(()) => json_response(StatusCode::OK, &Value::Null),
        Err(error) => {
            tracing::warn!(context_id = %id, %error, "failed to restart a context");
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("Failed to restart context {id}"))
        }
    }
}

impl App {
    async fn ask_envd(&self, headers: &HeaderMap) -> EnvResponse {
        envd::env(self.envd, headers.get(envd_api::headers::ACCESS_TOKEN)).await
    }

    /// Refuses a wrong token. The SDKs send it only to run code, so for other requests it may be missing.
    async fn refuse_wrong_token(&self, headers: &HeaderMap) -> Option<Response> {
        headers.get(envd_api::headers::ACCESS_TOKEN)?;
        match self.ask_envd(headers).await {
            EnvResponse::Env(_) | EnvResponse::Absent => None,
            refusal => Some(refused(&refusal)),
        }
    }
}

fn refused(answer: &EnvResponse) -> Response {
    match answer {
        EnvResponse::Refused => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        _ => text(StatusCode::SERVICE_UNAVAILABLE, "Authentication unavailable"),
    }
}

fn parse(language: Option<&str>) -> Result<Language, Error> {
    Language::parse(language)
        .ok_or_else(|| Error::UnknownLanguage(language.unwrap_or_default().trim().to_lowercase()))
}

fn no_context(id: &str) -> Response {
    text(StatusCode::NOT_FOUND, format!("Context {id} not found"))
}

fn failed(what: &str, error: &Error) -> Response {
    tracing::warn!(%error, "failed to {what}");
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("Failed to {what}: {error}"))
}

fn unprocessable(detail: &Value) -> Response {
    json_response(StatusCode::UNPROCESSABLE_ENTITY, &json!({"detail": [detail]}))
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], ascii_json(value)).into_response()
}

fn text(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}
