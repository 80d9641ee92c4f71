//! The REST control plane: both generations of E2B's routes, and a few of our own under `/cofferdam/v1`.
//! Handlers convert between JSON and the types of `control`, which has the rules. Every error is JSON with `code` and `message`.
//! Paths are matched while still percent-encoded, so `%2F` stays inside one segment.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod cors;
mod error;
mod observe;
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
use tower_http::timeout::RequestBodyTimeoutLayer;

pub use body::MAX_BODY;
pub use error::ApiError;
pub use rates::{RateLimit, RateLimitError};
pub use route_table::Route;
pub use routes::nodes::{Host, HostDisk, HostProbe, Processor};
pub use routes::prometheus::{METRICS_MEDIA_TYPE, MetricsSource};

/// Settings of the REST interface.
#[derive(Debug, Clone, Default)]
pub struct ApiConfig {
    /// The operator's credential, in `X-Admin-Token`: for `/admin`, `/nodes`, `/metrics`, `/api-keys` and `/teams`. Without it these
    /// refuse the operator.
    pub admin_token: Option<String>,
    /// `domain` of sandboxes in responses: clients connect to `<port>-<id>.<domain>`. Without it they use their own setting.
    pub domain: Option<String>,
    /// Measures the host, for `/nodes`.
    pub host: HostProbe,
    /// Rate limits of each team's requests; none by default.
    pub rate_limits: Vec<RateLimit>,
    /// Renders the metrics, for `/metrics`; without it that is 404.
    pub metrics: Option<MetricsSource>,
}

/// The state of every handler.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) control: Arc<Control>,
    pub(crate) config: Arc<ApiConfig>,
    pub(crate) rates: Arc<rates::RateLimits>,
}

/// Returns the router of the REST API. `edge` serves it, after it has taken out the requests to sandboxes.
pub fn router(control: Arc<Control>, config: ApiConfig) -> Router {
    let rates = Arc::new(rates::RateLimits::new(&config.rate_limits));
    let api = Api { control, config: Arc::new(config), rates };
    table()
        .into_router()
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(RequestBodyTimeoutLayer::new(body::MAX_IDLE))
        .layer(middleware::from_fn(routes::secrets::fixed_texts))
        .layer(middleware::from_fn(rates::headers))
        .layer(middleware::from_fn(cors::cors))
        .layer(middleware::from_fn(observe::observe))
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
        .merge(routes::secrets::routes())
        .merge(routes::prometheus::routes())
        .merge(routes::server::routes())
        .merge(routes::identity::routes())
        .merge(routes::ssh_keys::routes())
        .merge(routes::system::routes())
        .merge(routes::volumes::routes())
        .merge(routes::volume_content::routes())
}

/// Returns method and pattern of every route of [`router`].
pub fn routes() -> Vec<Route> {
    table().into_routes()
}
