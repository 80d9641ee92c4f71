//! The REST control plane: both generations of E2B's routes, and a few of our own under `/cofferdam/v1`.
//! Handlers translate; the rules are in `control`. Every error is JSON with `code` and `message`.
//! Paths are matched while still percent-encoded, so `%2F` stays inside one segment.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod cors;
mod error;
mod paths;
mod routes;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use control::Control;

pub use body::LARGEST_BODY;
pub use error::ApiError;

/// Settings of the REST interface.
#[derive(Debug, Clone, Default)]
pub struct ApiConfig {
    /// Opens `/api-keys`, `/admin` and `/teams` in `X-Admin-Token`; without it they are closed.
    pub admin_token: Option<String>,
    /// Where clients find the data plane, as `domain` of a sandbox; without it they use their own setting.
    pub domain: Option<String>,
}

/// What every handler gets.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) control: Arc<Control>,
    pub(crate) config: Arc<ApiConfig>,
}

/// The routes. To be served by `edge`, which takes sandbox traffic out first.
pub fn router(control: Arc<Control>, config: ApiConfig) -> Router {
    let api = Api { control, config: Arc::new(config) };
    Router::new()
        .merge(routes::sandboxes::routes())
        .merge(routes::lifecycle::routes())
        .merge(routes::logs::routes())
        .merge(routes::templates::routes())
        .merge(routes::keys::routes())
        .merge(routes::server::routes())
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(middleware::from_fn(cors::cors))
        .with_state(api)
}
