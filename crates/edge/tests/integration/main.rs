//! The edge over real sockets: routing, streaming, resets and refusals.
#![allow(missing_docs, clippy::unwrap_used)]

mod front_door;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::CreateRequest;
use control::testing::{APP_PORT, Fixture, TestSandbox};
use edge::{EdgeConfig, Protocol};
use engine::ExitReason;
use envd_api::PORT as ENVD_PORT;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ids::SandboxId;
use serde_json::{Value, json};
use store::NetworkConfig;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

struct Server {
    fixture: Fixture,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn new() -> Self {
        Self::with(Protocol::Plain, |_| {}).await
    }

    async fn with(protocol: Protocol, change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let fixture = Fixture::new().await;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = api::router(fixture.control.clone(), api::ApiConfig::default());
        let (stop, stopped) = oneshot::channel();
        let mut config = EdgeConfig { drain: Duration::from_millis(200), ..EdgeConfig::default() };
        change(&mut config);
        let has_proxy_header = !config.trusted_proxies.is_empty();
        let control = fixture.control.clone();
        let task = tokio::spawn(async move {
            let shutdown = async { stopped.await.unwrap_or(()) };
            let listener = edge::Listener { socket: listener, protocol, has_proxy_header };
            edge::serve(vec![listener], api, control, config, shutdown).await
        });
        Self { fixture, address, stop: Some(stop), task }
    }

    async fn sandbox(&self, change: impl FnOnce(&mut CreateRequest)) -> (SandboxId, Arc<TestSandbox>) {
        let id = self.fixture.create_with(change).await.unwrap().info.id;
        let guest = self.fixture.guest(&id);
        (id, guest)
    }

    async fn kill(&self, id: &SandboxId) {
        self.fixture.control.kill(self.fixture.team.id, id).await.unwrap();
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::get(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Full::default()).unwrap()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn json(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let (status, body) = self.get(host, path, headers).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("not JSON: {body}")))
    }

    /// Sends the head of a request by hand, to observe the socket.
    async fn raw(&self, head: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }
}

/// Reads a response's head and returns its status line.
async fn head(stream: &mut BufReader<TcpStream>) -> String {
    let mut status = String::new();
    stream.read_line(&mut status).await.unwrap();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    status
}

/// Reads until the piece has arrived.
async fn read_until(stream: &mut BufReader<TcpStream>, piece: &str) {
    let mut seen = Vec::new();
    while !seen.windows(piece.len()).any(|window| window == piece.as_bytes()) {
        seen.push(stream.read_u8().await.expect("the piece comes before the end"));
    }
}

fn host(port: u16, id: &SandboxId) -> String {
    format!("{port}-{id}.localhost:3000")
}

#[tokio::test]
async fn hosts_and_headers_route_to_ports_and_all_else_to_the_api() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let envd = host(ENVD_PORT, &id);
    assert_eq!(server.get(&envd, "/health", &[]).await.0, 204);
    let port = ENVD_PORT.to_string();
    let headers = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", port.as_str())];
    assert_eq!(server.get("localhost:3000", "/health", &headers).await.0, 204);
    let app = [("e2b-sandbox-id", id.as_str()), ("E2b-Sandbox-Port", "8000")];
    let (_, request) = server.json("127.0.0.1", "/request?a=%2F", &app).await;
    assert_eq!(request["target"], "/request?a=%2F");
    assert_eq!(request["headers"]["host"], json!(["127.0.0.1"]));
    assert_eq!(server.get("localhost", "/health", &[]).await, (200, "Health check successful".into()));
    assert_eq!(server.get("localhost", "/health", &headers[..1]).await, (400, "missing header".into()));
    assert_eq!(server.get("noport.localhost", "/", &[]).await, (400, "Invalid host".into()));
    assert_eq!(server.get("80-i_.localhost", "/", &[]).await, (400, "Invalid sandbox ID".into()));
    assert_eq!(server.get("x-iabc.localhost", "/", &[]).await, (400, "Invalid sandbox port".into()));
}

/// A proxy before the edge may have checked one host, and the edge would route by another one.
#[tokio::test]
async fn requests_that_name_two_hosts_are_refused() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let named = host(APP_PORT, &id);
    for head in [
        format!("GET /request HTTP/1.1\r\nhost: localhost\r\nhost: {named}\r\n\r\n"),
        format!("GET /request HTTP/1.1\r\nhost: {named}\r\nhost: {named}\r\n\r\n"),
        format!("GET http://{named}/request HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        "GET http://localhost/health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".to_owned(),
    ] {
        assert_eq!(self::head(&mut server.raw(&head).await).await, "HTTP/1.1 400 Bad Request\r\n", "{head}");
    }
    let same = format!("GET http://{named}/request HTTP/1.1\r\nhost: {named}\r\n\r\n");
    assert_eq!(self::head(&mut server.raw(&same).await).await, "HTTP/1.1 200 OK\r\n");

    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (other, status) in [("localhost", 400), (named.as_str(), 200)] {
        let request = Request::get(format!("http://{named}/request")).header("host", other);
        let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{other}");
    }
}

#[tokio::test]
async fn requests_arrive_as_they_were_sent() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let host = host(APP_PORT, &id);
    let sent = [
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("lang_version", "1"),
        ("e2b-traffic-access-token", "t"),
    ];
    let (_, request) = server.json(&host, "/request", &sent).await;
    assert_eq!(request["headers"], json!({"host": [host], "lang_version": ["1"]}));

    let control = &server.fixture.control;
    let secret = [("x-access-token", control.envd_token(&id))];
    let secret = secret.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (_, request) = server.json(&host, "/request", &secret).await;
    let inner = control.inner_token(&id);
    assert_eq!(request["headers"], json!({"host": [host], "x-access-token": [inner]}));

    let (masked, _) = server
        .sandbox(|request| {
            request.network = Some(NetworkConfig {
                mask_request_host: Some("localhost:${PORT}".to_owned()),
                ..NetworkConfig::default()
            });
        })
        .await;
    let host = self::host(APP_PORT, &masked);
    let (_, request) = server.json(&host, "/request", &[]).await;
    assert_eq!(request["headers"], json!({"host": ["localhost:8000"], "x-forwarded-host": [host]}));
}

#[tokio::test]
async fn ended_sandboxes_and_closed_ports_get_different_errors() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let closed = json!({
        "sandboxId": id, "message": "The sandbox is running but port is not open", "port": 9, "code": 502,
    });
    let gone = json!({"sandboxId": id, "message": "The sandbox was not found", "code": 502});
    assert_eq!(server.json(&host(9, &id), "/", &[]).await, (502, closed));
    let browser = [("user-agent", "Mozilla/5.0"), ("accept", "text/html")];
    let (status, page) = server.get(&host(9, &id), "/", &browser).await;
    assert!(status == 502 && page.starts_with("<!doctype html>"), "{page}");

    server.kill(&id).await;
    assert_eq!(server.json(&host(APP_PORT, &id), "/", &[]).await, (502, gone.clone()));
    assert_eq!(server.json(&host(ENVD_PORT, &id), "/health", &[]).await, (502, gone));
    drop(guest);
}

#[tokio::test]
async fn a_sandbox_that_ends_during_a_request_is_not_found() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    // A server that accepts the request and never responds.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    guest.open_port(7, listener.local_addr().unwrap());
    let host = host(7, &id);
    let response = server.get(&host, "/", &[]);
    let dies = async {
        let (stream, _) = listener.accept().await.unwrap();
        guest.die(ExitReason::Exited(0));
        drop(stream);
    };
    let ((status, body), ()) = tokio::join!(response, dies);
    assert!(status == 502 && body.contains("The sandbox was not found"), "{body}");
}

#[tokio::test]
async fn reserved_paths_of_envd_are_refused() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let init = guest.init();
    for path in ["/init", "//init", "/%69nit", "/x/%2e%2e/init", "/freeze", "/upgrade/"] {
        let (status, body) = server.json(&host(ENVD_PORT, &id), path, &[]).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(
            body["message"],
            "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
        );
        assert_eq!(body["code"], 404);
    }
    let post = Request::post("/init").header("host", host(ENVD_PORT, &id));
    let response = server.send(post.body(Full::from("{\"accessToken\":\"x\"}")).unwrap()).await;
    assert_eq!(response.status(), 404);
    assert_eq!(guest.init(), init);
    assert_eq!(server.get(&host(APP_PORT, &id), "/init", &[]).await.0, 404, "the app's own response");
}

#[tokio::test]
async fn private_ports_require_the_traffic_token() {
    let server = Server::new().await;
    let (id, _) = server
        .sandbox(|request| {
            request.network =
                Some(NetworkConfig { allow_public_traffic: Some(false), ..NetworkConfig::default() });
        })
        .await;
    let app = host(APP_PORT, &id);
    let (status, body) = server.json(&app, "/request", &[]).await;
    assert_eq!(status, 403);
    assert!(body["message"].as_str().unwrap().ends_with("'e2b-traffic-access-token' is missing"), "{body}");
    let (status, body) = server.json(&app, "/request", &[("e2b-traffic-access-token", "x")]).await;
    assert_eq!(status, 403);
    assert!(body["message"].as_str().unwrap().ends_with("'e2b-traffic-access-token' is invalid"), "{body}");
    let token = server.fixture.control.traffic_token(&id);
    let (status, _) = server.json(&app, "/request", &[("e2b-traffic-access-token", &token)]).await;
    assert_eq!(status, 200);
    assert_eq!(server.get(&host(ENVD_PORT, &id), "/health", &[]).await.0, 204, "envd has its own token");
}

#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let host = host(APP_PORT, &id);
    let mut readers = guest.readers();
    let mut stream = server.raw(&format!("GET /ticks HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    readers.wait_for(|readers| *readers == 1).await.unwrap();
    assert_eq!(head(&mut stream).await, "HTTP/1.1 200 OK\r\n");
    for piece in ["one", "two", "three"] {
        guest.tick(piece);
        read_until(&mut stream, piece).await;
    }

    let request = format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut stream = server.raw(&request).await;
    stream.write_all(b"5\r\nhello\r\n").await.unwrap();
    assert_eq!(head(&mut stream).await, "HTTP/1.1 200 OK\r\n");
    read_until(&mut stream, "hello").await;
    stream.write_all(b"5\r\nworld\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "world").await;
    read_until(&mut stream, "0\r\n\r\n").await;

    let big = server.send(Request::get("/big").header("host", &host).body(Full::default()).unwrap()).await;
    assert_eq!(big.headers()["content-length"], (64 << 20).to_string());
    assert_eq!(big.into_body().collect().await.unwrap().to_bytes().len(), 64 << 20);
}

#[tokio::test]
async fn open_streams_are_reset_when_the_sandbox_ends() {
    for by_itself in [false, true] {
        let server = Server::new().await;
        let (id, guest) = server.sandbox(|_| {}).await;
        let host = host(APP_PORT, &id);
        let mut readers = guest.readers();
        let mut stream = server.raw(&format!("GET /ticks HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        readers.wait_for(|readers| *readers == 1).await.unwrap();
        guest.tick("one");
        head(&mut stream).await;
        read_until(&mut stream, "one").await;
        let reset = async {
            let mut rest = Vec::new();
            let error = stream.read_to_end(&mut rest).await.expect_err("a reset, not an end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            // A client that is cut off and asks at once must learn that the sandbox has ended.
            let (status, body) = server.get(&self::host(ENVD_PORT, &id), "/health", &[]).await;
            assert!(status == 502 && body.contains("was not found"), "{status} {body}");
        };
        let end = async { if by_itself { guest.die(ExitReason::Exited(0)) } else { server.kill(&id).await } };
        tokio::join!(reset, end);
    }
}

#[tokio::test]
async fn clients_that_do_not_read_are_reset_too() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let mut stream = server.raw(&format!("GET /big HTTP/1.1\r\nhost: {}\r\n\r\n", host(APP_PORT, &id))).await;
    head(&mut stream).await;
    server.kill(&id).await;
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.expect_err("64 MiB do not fit into socket buffers");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// SDKs send streams whose body comes after the head; a refusal must not cost them their connection.
#[tokio::test]
async fn refusals_leave_the_connection_usable() {
    let server = Server::new().await;
    let mut stream = server.raw("").await;
    for (path, host, status) in [
        ("/v2/sandboxes", "localhost", "401 Unauthorized"),
        ("/process.Process/Start", "49983-inone.localhost", "502 Bad Gateway"),
        ("/", "bad.localhost", "400 Bad Request"),
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"5\r\nhello\r\n").await.unwrap();
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let mut line = String::new();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            assert!(!line.starts_with("connection: close"));
            if line.starts_with("HTTP/") {
                assert_eq!(line, format!("HTTP/1.1 {status}\r\n"));
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        stream.read_exact(&mut vec![0; length]).await.unwrap();
    }
    // If the body does not end, the response announces that the connection closes.
    let head = "POST / HTTP/1.1\r\nhost: bad.localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "connection: close").await;
}

#[tokio::test]
async fn upgrades_pass_through_and_are_reset() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let request = format!(
        "GET /upgrade HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        host(APP_PORT, &id)
    );
    let mut stream = server.raw(&request).await;
    assert_eq!(head(&mut stream).await, "HTTP/1.1 101 Switching Protocols\r\n");
    for _ in 0..3 {
        stream.write_all(b"\x81\x04ping").await.unwrap();
        read_until(&mut stream, "\u{4}ping").await;
    }
    let reset = async {
        let mut rest = Vec::new();
        let error = stream.read_to_end(&mut rest).await.expect_err("a reset, not an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    tokio::join!(reset, server.kill(&id));
}

#[tokio::test]
async fn h2_clients_are_served_and_only_their_stream_is_reset() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let (other, _) = server.sandbox(|_| {}).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let get = |id: &SandboxId, path: &str| {
        let uri = format!("http://{}{path}", host(APP_PORT, id));
        Request::get(uri).body(Full::<Bytes>::default()).unwrap()
    };
    let response = sender.send_request(get(&other, "/request")).await.unwrap();
    let seen: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(seen["headers"]["host"], json!([host(APP_PORT, &other)]));

    let mut readers = guest.readers();
    let ticks = sender.send_request(get(&id, "/ticks"));
    let (ticks, _) = tokio::join!(ticks, readers.wait_for(|readers| *readers == 1));
    let mut body = ticks.unwrap().into_body();
    guest.tick("one");
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    let (end, ()) = tokio::join!(body.frame(), server.kill(&id));
    assert!(end.expect("no clean end").is_err());
    let response = sender.send_request(get(&other, "/request")).await.unwrap();
    assert_eq!(response.status(), 200, "the connection still works");
}

#[tokio::test]
async fn only_connections_to_envd_are_reused() {
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let before = guest.accepted();
    let token = server.fixture.control.envd_token(&id);
    for _ in 0..5 {
        let credentials = [("x-access-token", token.as_str())];
        assert_eq!(server.get(&host(ENVD_PORT, &id), "/metrics", &credentials).await.0, 200);
        assert_eq!(server.get(&host(ENVD_PORT, &id), "/metrics", &[]).await.0, 401);
    }
    assert_eq!(guest.accepted(), before + 1);
    for _ in 0..2 {
        assert_eq!(server.get(&host(APP_PORT, &id), "/metrics", &[]).await.0, 200);
    }
    assert_eq!(guest.accepted(), before + 3);
}

#[tokio::test]
async fn shutdown_waits_for_responses_and_then_cuts_them() {
    let mut server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let mut readers = guest.readers();
    let mut stream =
        server.raw(&format!("GET /ticks HTTP/1.1\r\nhost: {}\r\n\r\n", host(APP_PORT, &id))).await;
    readers.wait_for(|readers| *readers == 1).await.unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    guest.tick("late");
    head(&mut stream).await;
    read_until(&mut stream, "late").await;
    server.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(server.fixture.control.find_running(&id).is_some(), "the sandbox still runs");
}

#[tokio::test]
async fn the_response_of_a_server_that_refuses_an_upload_and_closes_is_read() {
    const ROUNDS: usize = 20;
    let server = Server::new().await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    guest.open_port(8080, listener.local_addr().unwrap());
    let refusing = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 100]).await.unwrap();
            let answer = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 9\r\n\r\ntoo large";
            stream.write_all(answer).await.unwrap();
            // Closed with megabytes unread: the kernel sends a reset.
        }
    });
    let content = Bytes::from(vec![7; 16 << 20]);
    for _ in 0..ROUNDS {
        let request = Request::post("/upload").header("host", host(8080, &id));
        let response = server.send(request.body(Full::new(content.clone())).unwrap()).await;
        assert_eq!(response.status(), 413);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "too large");
    }
    refusing.await.unwrap();

    // A server that closes without a response is still an error.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    guest.open_port(8081, listener.local_addr().unwrap());
    tokio::spawn(async move { drop(listener.accept().await) });
    let request = Request::post("/upload").header("host", host(8081, &id));
    let response = server.send(request.body(Full::new(content)).unwrap()).await;
    assert_eq!(response.status(), 502);
}

/// Clients of HTTP/2 believe a response to an unfinished request only if its stream is not cancelled.
#[tokio::test]
async fn early_responses_over_http2_end_their_streams_without_an_error() {
    let server = Server::new().await;
    let (id, _) = server.sandbox(|_| {}).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (host, path, status) in [
        (host(ENVD_PORT, &id), "/files?path=a", 401),
        ("localhost".to_owned(), "/v2/sandboxes", 401),
        (host(9, &id), "/", 502),
        (host(APP_PORT, &id), "/nothing", 404),
        ("noport.localhost".to_owned(), "/", 400),
    ] {
        let request = Request::post(format!("http://{host}{path}")).body(()).unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"the beginning"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), status, "{host}{path}");
        let mut data = response.into_body();
        while let Some(piece) = data.data().await {
            piece.unwrap();
        }
        // Some clients believe it only if they may send the rest, up to a limit.
        for _ in 0..4 {
            body.send_data(Bytes::from(vec![b'x'; 1000]), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        let reset = std::future::poll_fn(|cx| body.poll_reset(cx));
        if let Ok(Ok(reason)) = tokio::time::timeout(Duration::from_millis(100), reset).await {
            assert_eq!(reason, h2::Reason::NO_ERROR, "{host}{path}");
        }

        let request = Request::post(format!("http://{host}{path}")).body(()).unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{host}{path}");
        let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await.unwrap();
        assert_eq!(reason, h2::Reason::NO_ERROR, "a client that sends no more: {host}{path}");
    }
}
