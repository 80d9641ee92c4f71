//! An HTTP/1.1 client with kept connections: what any client library does, without its overhead.
//! Requests to a sandbox go to the server's one port and carry the two routing headers.
//! Of the Connect protocol it has enough to start a command and read its output until its end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
}

/// A created sandbox.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sandbox {
    #[serde(rename = "sandboxID")]
    pub(crate) id: String,
    #[serde(rename = "envdAccessToken")]
    token: String,
}

impl Http {
    pub(crate) fn new(url: String) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { client: Client::builder(TokioExecutor::new()).build(connector), url, key: String::new() }
    }

    pub(crate) fn with_key(self, key: String) -> Self {
        Self { key, ..self }
    }

    /// The same server and key, with connections of another runtime.
    pub(crate) fn reconnecting(&self) -> Self {
        Self::new(self.url.clone()).with_key(self.key.clone())
    }

    /// Calls the control plane; returns the response's JSON. Fails on any status but success.
    pub(crate) async fn api(
        &self,
        method: Method,
        path: &str,
        admin: Option<&str>,
        body: Value,
    ) -> Outcome<Value> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        request = request.header("content-type", "application/json").header("x-api-key", &self.key);
        if let Some(token) = admin {
            request = request.header("x-admin-token", token);
        }
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let response = self.client.request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            return Err(format!("{path}: {status} {}", bytes.escape_ascii()).into());
        }
        Ok(if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// Creates a sandbox from the base template.
    pub(crate) async fn create(&self) -> Outcome<Sandbox> {
        self.create_from("base").await
    }

    /// Creates a sandbox from a template or snapshot.
    pub(crate) async fn create_from(&self, template: &str) -> Outcome<Sandbox> {
        let body = json!({ "templateID": template, "timeout": 3600 });
        Ok(serde_json::from_value(self.api(Method::POST, "/v2/sandboxes", None, body).await?)?)
    }

    /// Kills a sandbox.
    pub(crate) async fn kill(&self, sandbox: &Sandbox) -> Outcome {
        self.api(Method::DELETE, &format!("/sandboxes/{}", sandbox.id), None, Value::Null).await.map(|_| ())
    }

    /// Kills every sandbox of the server, page by page.
    pub(crate) async fn kill_all(&self) -> Outcome {
        loop {
            let running = self.api(Method::GET, "/v2/sandboxes", None, Value::Null).await?;
            let ids = running.as_array().into_iter().flatten().filter_map(|one| one["sandboxID"].as_str());
            let ids: Vec<&str> = ids.collect();
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                self.api(Method::DELETE, &format!("/sandboxes/{id}"), None, Value::Null).await?;
            }
        }
    }

    /// A request to a sandbox's envd.
    fn to_envd(&self, sandbox: &Sandbox, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("e2b-sandbox-id", &sandbox.id)
            .header("e2b-sandbox-port", envd_api::PORT)
            .header(envd_api::headers::ACCESS_TOKEN, &sandbox.token)
    }

    /// Calls envd's health check.
    pub(crate) async fn health(&self, sandbox: &Sandbox) -> Outcome {
        let request = self.to_envd(sandbox, Method::GET, "/health").body(Full::default())?;
        let status = self.client.request(request).await?.status();
        if status == StatusCode::NO_CONTENT { Ok(()) } else { Err(status.to_string().into()) }
    }

    /// Runs a program until it exits; returns its standard output.
    pub(crate) async fn run(&self, sandbox: &Sandbox, program: &str, args: &[&str]) -> Outcome<Vec<u8>> {
        let message = json!({ "process": { "cmd": program, "args": args }, "stdin": false }).to_string();
        let mut envelope = vec![0];
        envelope.extend(u32::try_from(message.len())?.to_be_bytes());
        envelope.extend(message.into_bytes());
        let request = self
            .to_envd(sandbox, Method::POST, "/process.Process/Start")
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1")
            .body(Full::new(envelope.into()))?;
        let mut body = good(self.client.request(request).await?)?.into_body();
        let (mut pending, mut output) = (BytesMut::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(message) = next_message(&mut pending)? {
                if let Some(text) = message["event"]["data"]["stdout"].as_str() {
                    output.extend(STANDARD.decode(text)?);
                }
            }
        }
        Ok(output)
    }

    /// Writes a file.
    pub(crate) async fn upload(&self, sandbox: &Sandbox, path: &str, content: Bytes) -> Outcome {
        let request = self
            .to_envd(sandbox, Method::POST, &format!("/files?path={path}"))
            .header("content-type", "application/octet-stream")
            .body(Full::new(content))?;
        good(self.client.request(request).await?)?.into_body().collect().await?;
        Ok(())
    }

    /// Downloads a file without keeping its content; returns its size.
    pub(crate) async fn download(&self, sandbox: &Sandbox, path: &str) -> Outcome<usize> {
        let request =
            self.to_envd(sandbox, Method::GET, &format!("/files?path={path}")).body(Full::default())?;
        let mut body = good(self.client.request(request).await?)?.into_body();
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            size += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(size)
    }
}

/// The response, unless its status is not 200.
fn good(response: Response<Incoming>) -> Outcome<Response<Incoming>> {
    if response.status() == StatusCode::OK { Ok(response) } else { Err(response.status().to_string().into()) }
}

/// Removes the first message from the buffer and returns it, or `None` while it is incomplete.
fn next_message(pending: &mut BytesMut) -> Outcome<Option<Value>> {
    let Some(&[_, a, b, c, d]) = pending.first_chunk::<5>() else { return Ok(None) };
    let length = 5 + u32::from_be_bytes([a, b, c, d]) as usize;
    if pending.len() < length {
        return Ok(None);
    }
    let message = pending.split_to(length);
    Ok(Some(serde_json::from_slice(&message[5..])?))
}
