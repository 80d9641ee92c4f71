//! The REST control plane: both generations of E2B's routes, and a few of our own under `/cofferdam/v1`.
//! Handlers translate; the rules are in `control`. Every error is JSON with `code` and `message`.
//! Paths are matched while still percent-encoded, so `%2F` stays inside one segment.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod cors;
mod error;
mod paths;
mod rates;
mod route_table;
mod routes;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use control::Control;
use route_table::RouteTable;

pub use body::MAX_BODY;
pub use error::ApiError;
pub use rates::{RateLimit, RateLimitError};
pub use route_table::Route;
pub use routes::nodes::{Host, HostDisk, HostProbe, Processor};

/// Settings of the REST interface.
#[derive(Debug, Clone, Default)]
pub struct ApiConfig {
    /// Opens `/admin`, `/nodes`, and `/api-keys` and `/teams` for the operator, in `X-Admin-Token`.
    pub admin_token: Option<String>,
    /// Where clients find the data plane, as `domain` of a sandbox; without it they use their own setting.
    pub domain: Option<String>,
    /// Looks at the machine, for `/nodes`.
    pub host: HostProbe,
    /// How often teams may call which routes; none by default.
    pub rate_limits: Vec<RateLimit>,
}

/// What every handler gets.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) control: Arc<Control>,
    pub(crate) config: Arc<ApiConfig>,
    pub(crate) rates: Arc<rates::Rates>,
}

/// The routes. To be served by `edge`, which takes sandbox traffic out first.
pub fn router(control: Arc<Control>, config: ApiConfig) -> Router {
    let rates = Arc::new(rates::Rates::new(&config.rate_limits));
    let api = Api { control, config: Arc::new(config), rates };
    table()
        .into_router()
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(middleware::from_fn(rates::headers))
        .layer(middleware::from_fn(cors::cors))
        .with_state(api)
}

fn table() -> RouteTable {
    RouteTable::new()
        .merge(routes::sandboxes::routes())
        .merge(routes::lifecycle::routes())
        .merge(routes::logs::routes())
        .merge(routes::metrics::routes())
        .merge(routes::events::routes())
        .merge(routes::templates::routes())
        .merge(routes::keys::routes())
        .merge(routes::teams::routes())
        .merge(routes::nodes::routes())
        .merge(routes::pool::routes())
        .merge(routes::server::routes())
}

/// Method and pattern of every route that [`router`] has.
pub fn routes() -> Vec<Route> {
    table().into_routes()
}
