//! A router together with the list of its routes: method and path pattern of each.
//! The modules in `routes` add their handlers here, so that the list cannot miss a route.
//! `docs/openapi.yaml` is compared with the list by the test `openapi`.

use std::convert::Infallible;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::Api;

/// One route: a method, and the pattern of the paths it is for, such as `/sandboxes/{sandboxID}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The method in capital letters. `GET` includes `HEAD`.
    pub method: &'static str,
    /// The pattern, with parameters in braces.
    pub pattern: &'static str,
}

/// Routes with their handlers.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    router: Router<Api>,
    routes: Vec<Route>,
}

impl RouteTable {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn get<H: Handler<T, Api>, T: 'static>(self, pattern: &'static str, handler: H) -> Self {
        self.add("GET", pattern, on(MethodFilter::GET, handler))
    }

    pub(crate) fn post<H: Handler<T, Api>, T: 'static>(self, pattern: &'static str, handler: H) -> Self {
        self.add("POST", pattern, on(MethodFilter::POST, handler))
    }

    pub(crate) fn put<H: Handler<T, Api>, T: 'static>(self, pattern: &'static str, handler: H) -> Self {
        self.add("PUT", pattern, on(MethodFilter::PUT, handler))
    }

    pub(crate) fn patch<H: Handler<T, Api>, T: 'static>(self, pattern: &'static str, handler: H) -> Self {
        self.add("PATCH", pattern, on(MethodFilter::PATCH, handler))
    }

    pub(crate) fn delete<H: Handler<T, Api>, T: 'static>(self, pattern: &'static str, handler: H) -> Self {
        self.add("DELETE", pattern, on(MethodFilter::DELETE, handler))
    }

    fn add(
        mut self,
        method: &'static str,
        pattern: &'static str,
        handler: MethodRouter<Api, Infallible>,
    ) -> Self {
        self.routes.push(Route { method, pattern });
        Self { router: self.router.route(pattern, handler), ..self }
    }

    /// Lets the handlers added so far read bodies of any length.
    pub(crate) fn without_body_limit(self) -> Self {
        Self { router: self.router.layer(DefaultBodyLimit::disable()), ..self }
    }

    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        Self { router: self.router.merge(other.router), ..self }
    }

    pub(crate) fn into_router(self) -> Router<Api> {
        self.router
    }

    pub(crate) fn into_routes(self) -> Vec<Route> {
        self.routes
    }
}
