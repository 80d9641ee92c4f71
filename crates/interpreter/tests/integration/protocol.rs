//! Endpoints, bodies, headers and error responses.
//! Languages are tested in `languages`, failures in `trouble`.
//! Each test has a server of its own.

#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::Interpreter;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_listens_once_two_contexts_exist() {
    let server = Interpreter::start().await;
    let answer = server.send("GET", "/health?source=ci", &[], "").await;
    assert_eq!((answer.status(), answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.text().await, "\"OK\"");
    let (status, body) = server.call("GET", "/contexts", &Value::Null).await;
    let contexts: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    let languages: Vec<&str> = contexts.iter().map(|context| context["language"].as_str().unwrap()).collect();
    assert_eq!(languages, ["python", "javascript"]);
    assert!(contexts.iter().all(|context| context["cwd"] == "/home/user"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_streams_lines_without_a_content_type() {
    let server = Interpreter::start().await;
    let mut answer = server.execute(json!({"code": "print('a'); print('b'); 1+1", "context_id": null})).await;
    assert_eq!(answer.header("content-type"), None);
    let mut types = Vec::new();
    while let Some(event) = answer.next().await {
        types.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(types, ["number_of_executions", "stdout", "result", "end_of_execution"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_are_rejected_with_a_reason() {
    let server = Interpreter::start().await;
    for (method, path, body, status, expected) in [
        (
            "POST",
            "/execute",
            r#"{"code":"1","context_id":"a","language":"python"}"#,
            400,
            "Only one of context_id or language can be provided",
        ),
        ("POST", "/execute", r#"{"code":"1","context_id":"nowhere"}"#, 404, "Context nowhere not found"),
        ("POST", "/execute", r#"{"code":"1","language":"cobol"}"#, 500, "Failed to create context: "),
        ("POST", "/contexts", r#"{"language":"py"}"#, 500, "Failed to create context: "),
        (
            "POST",
            "/execute",
            r#"{"code":{"a":1}}"#,
            422,
            r#"{"detail":[{"input":{"a":1},"loc":["body","code"]"#,
        ),
        ("POST", "/execute", "", 422, r#"{"detail":[{"input":null,"loc":["body"]"#),
        ("POST", "/execute", "{", 422, r#"{"detail":[{"ctx""#),
        ("POST", "/contexts", "", 422, r#"{"detail":["#),
        ("DELETE", "/contexts/nowhere", "", 404, "Context nowhere not found"),
        ("POST", "/contexts/nowhere/restart", "", 404, "Context nowhere not found"),
        ("GET", "/nothing", "", 404, r#"{"detail":"Not Found"}"#),
        ("GET", "/execute", "", 405, r#"{"detail":"Method Not Allowed"}"#),
    ] {
        let answer = server.send(method, path, &[], body).await;
        assert_eq!(answer.status(), status, "{method} {path} {body}");
        let text = answer.text().await;
        assert!(text.starts_with(expected), "{method} {path} {body}: {text}");
    }
    let answer = server.send("PUT", "/contexts", &[], "").await;
    assert_eq!((answer.status(), answer.header("allow")), (405, Some("GET,HEAD,POST")));
}

#[tokio::test(flavor = "multi_thread")]
async fn cross_origin_requests_are_allowed() {
    let server = Interpreter::start().await;
    let headers = [
        ("origin", "https://page.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-access-token"),
    ];
    let answer = server.send("OPTIONS", "/execute", &headers, "").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,x-access-token"));
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("DELETE"));
    assert_eq!(answer.text().await, "OK");
    let answer = server.send("GET", "/health", &headers[..1], "").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let answer = server.send("GET", "/health", &[], "").await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_created_listed_restarted_and_removed() {
    let server = Interpreter::start().await;
    let one = server.context(json!({"cwd": "/tmp"})).await;
    let two = server.context(json!({"language": " JS ", "cwd": null})).await;
    let (_, body) = server.call("GET", "/contexts", &Value::Null).await;
    let contexts: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(contexts[2], json!({"id": one, "language": "python", "cwd": "/tmp"}));
    assert_eq!(contexts[3], json!({"id": two, "language": "javascript", "cwd": "/home/user"}));
    let run = |code| server.run(json!({"context_id": one, "code": code}));
    assert_eq!(run("import os; x = 1; os.getcwd()").await.text(), "/tmp");
    assert_eq!(server.code("python", "'x' in globals()").await.text(), "False", "contexts are apart");
    assert_eq!(
        server.call("POST", &format!("/contexts/{one}/restart"), &Value::Null).await,
        (200, "null".to_owned())
    );
    let again = run("import os; ('x' in globals(), os.getcwd())").await;
    assert_eq!((again.count(), again.text()), (1, "(False, '/tmp')"));
    for id in [&one, "default"] {
        assert_eq!(
            server.call("DELETE", &format!("/contexts/{id}"), &Value::Null).await,
            (200, "null".to_owned())
        );
    }
    assert_eq!(server.call("DELETE", &format!("/contexts/{one}"), &Value::Null).await.0, 404);
    let (_, body) = server.call("GET", "/contexts", &Value::Null).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&body).unwrap().len(), 2);
    assert_eq!(server.run(json!({"code": "1"})).await.count(), 1, "another default is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_required_to_run_code_and_must_not_be_wrong_elsewhere() {
    let server = Interpreter::start().await;
    server.envd.token("secret");
    let (right, wrong) = ([("x-access-token", "secret")], [("x-access-token", "guess")]);
    for (method, path, body, headers, status) in [
        ("POST", "/execute", r#"{"code":"1"}"#, &[][..], 401),
        ("POST", "/execute", r#"{"code":"1"}"#, &wrong[..], 401),
        ("POST", "/execute", r#"{"code":"1"}"#, &right[..], 200),
        ("GET", "/contexts", "", &[], 200),
        ("GET", "/contexts", "", &right, 200),
        ("GET", "/contexts", "", &wrong, 401),
        ("POST", "/contexts", "{}", &wrong, 401),
        ("DELETE", "/contexts/default", "", &wrong, 401),
        ("POST", "/contexts/default/restart", "", &wrong, 401),
        ("GET", "/health", "", &wrong, 200),
    ] {
        let answer = server.send(method, path, headers, body).await;
        assert_eq!(answer.status(), status, "{method} {path} {headers:?}");
    }
    server.envd.break_down();
    let answer = server.send("POST", "/execute", &right, r#"{"code":"1"}"#).await;
    assert_eq!(answer.status(), 503, "nobody is let in on a guess");
}
