//! Metrics and traces of a real server: who may scrape, which series there are after some work, and what a collector receives.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use cofferdam_client::{PauseOptions, RunOptions, Sandbox};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use telemetry::METRICS;

use crate::common::Server;

/// Sends a GET request and returns status and body.
fn get(url: &str, headers: &str) -> (u16, String) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let status = response.split(' ').nth(1).unwrap().parse().unwrap();
    (status, response.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The values of all series by their text, such as `name{label="value"}`.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(' '));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

async fn create_exec_pause_and_kill(server: &Server) -> String {
    let sandbox = server.sandbox().await;
    sandbox.commands().run("echo hello", RunOptions::default()).await.unwrap();
    sandbox.pause(PauseOptions::default()).await.unwrap();
    let sandbox = Sandbox::connect(&server.client(), sandbox.id(), None).await.unwrap();
    sandbox.kill().await.unwrap();
    sandbox.id().to_owned()
}

#[tokio::test]
async fn the_operator_scrapes_what_happened() {
    let server = Server::start_with(&["--metrics-listen", "127.0.0.1:0", "--log-json", "--pool", "0"]);
    create_exec_pause_and_kill(&server).await;
    let token = std::fs::read_to_string(server.data.path().join("admin-token")).unwrap();
    let url = format!("{}/metrics", server.url);

    assert_eq!(get(&url, "").0, 401);
    assert_eq!(get(&url, &format!("x-api-key: {}\r\n", server.key)).0, 401);
    assert_eq!(get(&url, "authorization: Bearer wrong\r\n").0, 401);
    assert_eq!(get(&url, &format!("x-admin-token: {token}\r\n")).0, 200);
    let (status, text) = get(&url, &format!("authorization: Bearer {token}\r\n"));
    assert_eq!(status, 200);

    let series = series(&text);
    let value = |name: &str| *series.get(name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    assert_eq!(
        value(r#"cofferdam_sandbox_create_duration_seconds_count{path="cold_start",outcome="ok"}"#),
        1.0
    );
    assert_eq!(value(r#"cofferdam_exec_duration_seconds_count{outcome="ok"}"#), 1.0);
    assert_eq!(value(r#"cofferdam_capture_duration_seconds_count{kind="pause",outcome="ok"}"#), 1.0);
    assert_eq!(value(r#"cofferdam_resume_duration_seconds_count{path="frozen",outcome="ok"}"#), 1.0);
    assert_eq!(value(r#"cofferdam_sandboxes{state="running"}"#), 0.0);
    let posted = r#"method="POST",route="/v2/sandboxes",status="201""#;
    assert_eq!(value(&format!("cofferdam_http_request_duration_seconds_count{{{posted}}}")), 1.0);
    assert!(value(r#"cofferdam_edge_requests_total{target="envd",status="2xx"}"#) >= 1.0);
    let inserted = r#"operation="insert_sandbox",outcome="ok""#;
    assert_eq!(value(&format!("cofferdam_store_operation_duration_seconds_count{{{inserted}}}")), 1.0);
    assert!(value("process_open_fds") > 3.0 && value("process_resident_memory_bytes") > 1e6);

    let defined: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let emitted = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in emitted {
        assert!(defined.contains(name), "{name} is not described");
    }

    // Without a token, on the address that the log names.
    let log = std::fs::read_to_string(server.data.path().join("server.log")).unwrap();
    let line = log.lines().find(|line| line.contains("listening for scrapes")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let (status, text) = get(&format!("http://{}/metrics", line["fields"]["address"].as_str().unwrap()), "");
    assert!(status == 200 && text.contains("cofferdam_sandboxes"), "{status} {text}");
}

/// Accepts requests as a collector does, and passes their bodies on.
fn collector() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || collect(stream.unwrap(), &sender));
        }
    });
    (url, receiver)
}

fn collect(stream: TcpStream, sender: &mpsc::Sender<ExportTraceServiceRequest>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let _ = sender.send(ExportTraceServiceRequest::decode(&*body).unwrap());
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    }
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name} is {other:?} in {span:?}"),
    }
}

#[tokio::test]
async fn traces_reach_a_collector() {
    let (url, requests) = collector();
    // The log's level does not matter to traces.
    let server = Server::start_with(&["--otlp", &url, "--log", "warn", "--pool", "0"]);
    let id = create_exec_pause_and_kill(&server).await;
    // The end of the server flushes what is left.
    drop(server);

    let mut spans = Vec::new();
    while let Ok(request) = requests.try_recv() {
        for resource in request.resource_spans {
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let find = |name: &str, matches: &dyn Fn(&Span) -> bool| {
        let found = spans.iter().find(|span| span.name == name && matches(span));
        found.unwrap_or_else(|| {
            panic!("no {name} among {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>())
        })
    };
    let create = find("http_request", &|span| {
        attribute(span, "route") == "/v2/sandboxes" && attribute(span, "method") == "POST"
    });
    assert_eq!(attribute(create, "status"), "201");
    let pause = find("http_request", &|span| attribute(span, "route") == "/sandboxes/{sandboxID}/pause");
    assert_eq!(attribute(pause, "sandbox_id"), id);
    assert_eq!(attribute(pause, "team_id"), attribute(create, "team_id"));
    let exec = find("sandbox_request", &|span| attribute(span, "sandbox_id") == id);
    assert_eq!(attribute(exec, "port"), "49983");

    // What the control plane does is below the request that asked for it.
    for (name, parent) in [("create_sandbox", create), ("capture", pause)] {
        let span = find(name, &|_| true);
        assert_eq!(attribute(span, "sandbox_id"), id, "{name}");
        assert_eq!(span.trace_id, parent.trace_id, "{name}");
    }
}
