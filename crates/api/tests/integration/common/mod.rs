//! A router over a control plane of its own, and calls to it as a team, as the operator or with any headers.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)]

use api::ApiConfig;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use control::Config;
use control::testing::Fixture;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

pub const ADMIN: &str = "operators-secret";

pub struct Server {
    pub fixture: Fixture,
    router: Router,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn assert_error(&self, status: u16, message: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.body["code"], status);
        assert_eq!(self.body["message"], message);
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }
}

impl Server {
    pub async fn new() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    pub async fn with(control: impl FnOnce(&mut Config), rest: impl FnOnce(&mut ApiConfig)) -> Self {
        let fixture = Fixture::with(control).await;
        let mut config = ApiConfig { admin_token: Some(ADMIN.to_owned()), ..ApiConfig::default() };
        rest(&mut config);
        let router = api::router(fixture.control.clone(), config);
        Self { fixture, router }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.answer(request.body(body).unwrap()).await
    }

    pub async fn answer(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
        };
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send(method, path, &[("x-api-key", &self.fixture.key)], body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send(method, path, &[("x-admin-token", ADMIN)], body).await
    }

    /// A new sandbox's id.
    pub async fn create(&self) -> String {
        let body = serde_json::json!({"templateID": "base", "metadata": {"app": "test"}});
        let made = self.call("POST", "/v2/sandboxes", body).await.expect(201);
        made["sandboxID"].as_str().unwrap().to_owned()
    }
}
