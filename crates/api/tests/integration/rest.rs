//! The REST interface against the wire contract: statuses, bodies, which fields are there and which are not.
#![allow(missing_docs, clippy::unwrap_used)]

use api::ApiConfig;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use control::testing::{Fixture, registration};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const ADMIN: &str = "operators-secret";

struct Server {
    fixture: Fixture,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn text(&self) -> &str {
        self.body["message"].as_str().unwrap_or_else(|| panic!("no message in {}", self.body))
    }

    fn assert_error(&self, status: u16, message: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.body["code"], status);
        assert_eq!(self.text(), message);
    }
}

impl Server {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let config = ApiConfig { admin_token: Some(ADMIN.to_owned()), ..ApiConfig::default() };
        let router = api::router(fixture.control.clone(), config);
        Self { fixture, router }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
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

    async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("x-api-key", &self.fixture.key);
        self.send(request.body(body.into()).unwrap()).await
    }

    async fn admin(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("x-admin-token", ADMIN);
        self.send(request.body(body.into()).unwrap()).await
    }

    async fn create(&self, body: Value) -> Value {
        let answer = self.call("POST", "/v2/sandboxes", body.to_string()).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn both_generations_create_and_connect() {
    let server = Server::new().await;
    for (path, lifetime) in [("/sandboxes", 15), ("/v2/sandboxes", 300)] {
        let answer = server.call("POST", path, r#"{"templateID":"base","unknown":{"x":1},"mcp":null}"#).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(
            keys(&answer.body),
            ["alias", "clientID", "envdAccessToken", "envdVersion", "sandboxID", "templateID"]
        );
        assert_eq!(answer.body["envdVersion"], "0.6.13");
        assert_eq!(answer.body["envdAccessToken"].as_str().unwrap().len(), 64);
        let id = answer.body["sandboxID"].as_str().unwrap();
        let info = server.fixture.control.get(server.fixture.team.id, &id.parse().unwrap()).unwrap().info;
        assert_eq!((info.end_at - info.started_at).whole_seconds(), lifetime);

        for (path, body, status) in [
            (format!("/sandboxes/{id}/connect"), r#"{"timeout":600}"#, 200),
            (format!("/v2/sandboxes/{id}/connect"), "", 200),
            (format!("/v2/sandboxes/{id}/connect"), "{}", 200),
            (format!("/sandboxes/{id}-6532622b/connect"), r#"{"timeout":1}"#, 200),
            (format!("/sandboxes/{id}/connect"), "{}", 400),
            (format!("/sandboxes/{id}/refreshes"), "", 204),
            (format!("/sandboxes/{id}/timeout"), r#"{"timeout":60}"#, 204),
        ] {
            let again = server.call("POST", &path, body).await;
            assert_eq!(again.status.as_u16(), status, "{path}: {}", again.body);
            if status == 200 {
                assert_eq!(again.body, answer.body, "the same as at creation");
            }
        }
    }
}

#[tokio::test]
async fn details_and_lists_have_the_contracts_fields() {
    let server = Server::new().await;
    let made = server.create(json!({"templateID": "base", "metadata": {"a": "b c"}})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let detail = server.call("GET", &format!("/sandboxes/{id}"), "").await.body;
    let common = [
        "alias",
        "clientID",
        "cpuCount",
        "diskSizeMB",
        "endAt",
        "envdVersion",
        "memoryMB",
        "metadata",
        "sandboxID",
        "startedAt",
        "state",
        "templateID",
    ];
    let mut expected: Vec<&str> = common.to_vec();
    expected.extend(["envdAccessToken", "lifecycle"]);
    expected.sort_unstable();
    assert_eq!(keys(&detail), expected);
    assert_eq!(detail["lifecycle"], json!({"autoResume": false, "onTimeout": "kill"}));
    assert_eq!((&detail["state"], &detail["metadata"]), (&json!("running"), &json!({"a": "b c"})));

    for path in ["/sandboxes", "/v2/sandboxes", "/v2/sandboxes?state=running,paused&metadata=a%3Db%2520c"] {
        let list = server.call("GET", path, "").await;
        let mut expected = common.to_vec();
        expected.push("volumeMounts");
        assert_eq!(list.body.as_array().unwrap().len(), 1, "{path}");
        assert_eq!(keys(&list.body[0]), expected, "{path}");
        assert!(!list.headers.contains_key("x-next-token"));
    }

    let full = server
        .create(json!({
            "templateID": "base", "allow_internet_access": false,
            "network": {"allowPublicTraffic": false, "allowOut": ["1.1.1.1"], "egressProxy": null, "rules": {}},
            "autoPause": false, "autoResume": {"enabled": false}, "volumeMounts": [], "iam": null,
        }))
        .await;
    assert_eq!(full["trafficAccessToken"].as_str().unwrap().len(), 64);
    let id = full["sandboxID"].as_str().unwrap();
    let detail = server.call("GET", &format!("/sandboxes/{id}"), "").await.body;
    assert_eq!(detail["allowInternetAccess"], false);
    let network = json!({"allowPublicTraffic": false, "allowOut": ["1.1.1.1"], "rules": {}});
    assert_eq!(detail["network"], network);

    let page = server.call("GET", "/v2/sandboxes?limit=1", "").await;
    assert_eq!(page.body[0]["sandboxID"], id, "newest first");
    assert_eq!(page.headers["x-total-running"], "2");
    let token = page.headers["x-next-token"].to_str().unwrap();
    let page = server.call("GET", &format!("/v2/sandboxes?limit=1&nextToken={token}"), "").await;
    assert_eq!(page.body[0]["sandboxID"], made["sandboxID"]);
    assert!(!page.headers.contains_key("x-next-token"));
    let wrong = server.call("GET", &format!("/v2/sandboxes?order=asc&nextToken={token}"), "").await;
    wrong.assert_error(400, "Invalid next token");
}

#[tokio::test]
async fn callers_without_a_good_key_are_told_what_is_wrong() {
    let server = Server::new().await;
    let invalid = "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n";
    let unknown = format!("e2b_{}", "0".repeat(40));
    for (header, message) in [
        (None, "authorization header is missing".to_owned()),
        (Some(("x-api-key", "")), "authorization header is missing".to_owned()),
        (Some(("x-api-key", "nonsense")), "authorization header is malformed".to_owned()),
        (Some(("x-api-key", "e2b_xyz")), format!("{invalid}Invalid API key format")),
        (
            Some(("x-api-key", unknown.as_str())),
            format!("{invalid}Cannot get the team for the given API key"),
        ),
        (Some(("x-admin-token", "guess")), "Invalid Access token.\nInvalid Access token.".to_owned()),
    ] {
        let mut request = Request::builder().uri("/v2/sandboxes");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        server.send(request.body(Body::empty()).unwrap()).await.assert_error(401, &message);
    }
    assert_eq!(server.admin("GET", "/v2/sandboxes", "").await.status, 200);
}

#[tokio::test]
async fn bad_requests_get_the_contracts_answers() {
    let server = Server::new().await;
    let missing = r#"Sandbox "inone" doesn't exist or you don't have access to it"#;
    for (method, path, body, status, message) in [
        ("POST", "/v2/sandboxes", r#"{"templateID":"nope"}"#, 404, "template 'nope' not found"),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base:nope"}"#,
            404,
            "tag 'nope' does not exist for template 'base'",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"../../etc/passwd"}"#,
            400,
            "Invalid template reference: invalid namespace: ..",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","timeout":0}"#,
            400,
            "Timeout must be greater than 0",
        ),
        (
            "POST",
            "/sandboxes",
            r#"{"templateID":"base","timeout":100000000}"#,
            400,
            "Timeout cannot be greater than 720 hours",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","network":{"denyOut":["x.com"]}}"#,
            400,
            "invalid denied CIDR x.com",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","network":{"rules":{"x com":[]}}}"#,
            400,
            "Rule domain \"x com\" is not a valid domain name.",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}"#,
            501,
            "this server has no volumes",
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","autoPauseMemory":false}"#,
            400,
            "autoPauseMemory can only be turned off together with autoPause",
        ),
        ("GET", "/sandboxes/inone", "", 404, missing),
        ("DELETE", "/sandboxes/inone", "", 404, missing),
        ("POST", "/sandboxes/inone/timeout", r#"{"timeout":1}"#, 404, missing),
        ("POST", "/v2/sandboxes/inone/connect", "{}", 404, missing),
        ("POST", "/sandboxes/inone/pause", "{}", 404, missing),
        ("PUT", "/sandboxes/inone/network", "{}", 404, missing),
        ("GET", "/sandboxes/..%2F..%2Fetc", "", 400, "Invalid sandbox ID"),
        ("GET", "/sandboxes/a-b-c", "", 400, "Invalid sandbox ID"),
        ("GET", "/v2/sandboxes?metadata=novalue", "", 400, "Error parsing metadata"),
        ("GET", "/v2/sandboxes?limit=101", "", 400, "limit must be from 1 to 100"),
        ("GET", "/v2/sandboxes?state=gone", "", 400, "Invalid state: gone"),
        ("GET", "/templates/aliases/none", "", 404, "template 'none' not found"),
        ("GET", "/templates/aliases/a%20b", "", 400, "invalid template ID: a b"),
        ("GET", "/no/such/path", "", 404, "no such path"),
        ("PATCH", "/v2/sandboxes", "", 405, "this path does not take that method"),
    ] {
        let answer = server.call(method, path, body).await;
        eprintln!("{method} {path}");
        answer.assert_error(status, message);
    }
    for body in ["", "{", "[]", r#"{"templateID":1}"#, "{}", r#"{"templateID":"base","timeout":"x"}"#] {
        let answer = server.call("POST", "/v2/sandboxes", body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().starts_with("Error when parsing request: "), "{body}");
    }
    assert_eq!(server.fixture.engine.alive(), 0);
}

#[tokio::test]
async fn oversize_bodies_are_refused_with_and_without_a_length() {
    let server = Server::new().await;
    let large = vec![b' '; api::MAX_BODY + 1];
    let answer = server.call("POST", "/v2/sandboxes", large.clone()).await;
    answer.assert_error(413, "the request body is larger than 16777216 bytes");
    let pieces =
        large.chunks(1 << 20).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let stream = Body::from_stream(Pieces(pieces.into_iter()));
    let answer = server.call("POST", "/v2/sandboxes", stream).await;
    assert_eq!(answer.status, 413);
}

/// A body of unknown length.
struct Pieces<I>(I);

impl<I: Iterator + Unpin> futures::Stream for Pieces<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

#[tokio::test]
async fn states_follow_the_contract() {
    let server = Server::new().await;
    let made = server.create(json!({"templateID": "base"})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let post = async |route: &str, body: &str| {
        server.call("POST", &format!("/sandboxes/{id}/{route}"), body.to_owned()).await
    };
    post("resume", "").await.assert_error(409, &format!("Sandbox {id} is already running"));
    assert_eq!(server.call("GET", "/snapshots", "").await.body, json!([]));
    assert_eq!(post("connect", r#"{"timeout":60}"#).await.status, 200);
    let snapshot = post("snapshots", r#"{"name":"mine:v1"}"#).await;
    assert_eq!(snapshot.status, 201);
    assert_eq!(snapshot.body, json!({"snapshotID": "default/mine:v1", "names": ["default/mine:v1"]}));
    let listed = server.call("GET", &format!("/snapshots?sandboxID={id}&name=mine"), "").await;
    assert_eq!(listed.body, json!([snapshot.body]));

    let forks = post("fork", "").await;
    assert_eq!((forks.status.as_u16(), forks.body.as_array().unwrap().len()), (201, 1));
    let fork = &forks.body[0]["sandbox"];
    assert!(fork["sandboxID"] != made["sandboxID"] && fork["envdAccessToken"] != made["envdAccessToken"]);
    post("fork", r#"{"count":0}"#).await.assert_error(400, "count must be from 1 to 100");

    assert_eq!(post("pause", "").await.status, 204);
    let already = format!("Error pausing sandbox - sandbox '{id}' is already paused");
    post("pause", "{}").await.assert_error(409, &already);
    let detail = server.call("GET", &format!("/sandboxes/{id}"), "").await.body;
    assert_eq!((&detail["state"], &detail["pauseMode"]), (&json!("paused"), &json!("full")));
    assert!(detail.get("envdUnresponsiveAtPause").is_none());
    let paused = server.call("GET", "/v2/sandboxes?state=paused", "").await.body;
    assert_eq!(paused.as_array().unwrap().len(), 1);
    for route in ["snapshots", "fork"] {
        assert_eq!(post(route, "{}").await.status, 409);
    }
    let resumed = post("connect", r#"{"timeout":60}"#).await;
    assert_eq!((resumed.status.as_u16(), &resumed.body["envdAccessToken"]), (201, &made["envdAccessToken"]));

    let back = post("rollback", r#"{"snapshotID":"mine:v1"}"#).await;
    assert_eq!((back.status.as_u16(), &back.body["sandboxID"]), (200, &made["sandboxID"]));
    let template = "/templates/default%2Fmine%3Av1";
    assert_eq!(server.call("DELETE", template, "").await.status, 204);
    server.call("DELETE", template, "").await.assert_error(404, "template 'default/mine' not found");
}

#[tokio::test]
async fn a_killed_sandbox_is_gone() {
    let server = Server::new().await;
    for (method, route, body) in [
        ("DELETE", "", ""),
        ("POST", "/timeout", r#"{"timeout":0}"#),
        ("POST", "/timeout", r#"{"timeout":-5}"#),
    ] {
        let made = server.create(json!({"templateID": "base"})).await;
        let path = format!("/sandboxes/{}", made["sandboxID"].as_str().unwrap());
        assert_eq!(server.call(method, &format!("{path}{route}"), body).await.status, 204);
        assert_eq!(server.call("GET", &path, "").await.status, 404);
        assert_eq!(server.call("DELETE", &path, "").await.status, 404);
        assert_eq!(server.call("GET", "/v2/sandboxes", "").await.body, json!([]));
    }
}

#[tokio::test]
async fn capacity_and_limits_say_whether_to_retry() {
    let server = Server::new().await;
    let create = || server.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
    server.fixture.engine.fail_next(engine::EngineError::Exhausted("no slots".to_owned()));
    let busy = create().await;
    busy.assert_error(503, "Failed to place sandbox: not enough capacity: no slots");
    assert_eq!(busy.body["error_code"], "sandbox_capacity_unavailable");
    assert_eq!(
        (&busy.headers["should-retry"], &busy.headers["retry-after"]),
        (&"true".parse().unwrap(), &"1".parse().unwrap())
    );
    server.fixture.engine.fail_next(engine::EngineError::Died("code 1".to_owned()));
    let failed = create().await;
    assert_eq!((failed.status.as_u16(), &failed.body["error_code"]), (500, &json!("sandbox_create_failed")));
}

#[tokio::test]
async fn idempotency_has_its_statuses() {
    let server = Server::new().await;
    let create = |body: &'static str| {
        let request = Request::post("/v2/sandboxes")
            .header("x-api-key", &server.fixture.key)
            .header("idempotency-key", "k-1");
        server.send(request.body(Body::from(body)).unwrap())
    };
    let first = create(r#"{"templateID":"base"}"#).await;
    let again = create(r#"{"templateID":"base"}"#).await;
    assert_eq!((again.status.as_u16(), &again.body), (201, &first.body));
    let other = create(r#"{"templateID":"base","timeout":5}"#).await;
    assert_eq!(
        (other.status.as_u16(), &other.body["error_code"]),
        (422, &json!("idempotency_request_mismatch"))
    );
    assert_eq!(server.fixture.engine.alive(), 1);
}

#[tokio::test]
async fn keys_are_the_operators() {
    let server = Server::new().await;
    assert_eq!(server.call("GET", "/api-keys", "").await.status, 401);
    let made = server.admin("POST", "/api-keys", r#"{"name":"ci"}"#).await;
    assert_eq!(made.status, 201);
    let secret = made.body["key"].as_str().unwrap();
    assert_eq!(made.body["mask"]["maskedValueSuffix"], secret[40..]);
    assert_eq!(made.body["mask"]["valueLength"], 40);
    let by_key = Request::get("/v2/sandboxes").header("x-api-key", secret).body(Body::empty()).unwrap();
    assert_eq!(server.send(by_key).await.status, 200);

    let listed = server.admin("GET", "/api-keys", "").await;
    let id = made.body["id"].as_str().unwrap();
    let entry = listed.body.as_array().unwrap().iter().find(|key| key["id"] == id).unwrap();
    assert!(entry.get("key").is_none());
    assert!(entry["lastUsed"].is_string());
    assert_eq!(server.admin("PATCH", &format!("/api-keys/{id}"), r#"{"name":"x"}"#).await.status, 200);
    assert_eq!(server.admin("DELETE", &format!("/api-keys/{id}"), "").await.status, 204);
    assert_eq!(server.admin("DELETE", &format!("/api-keys/{id}"), "").await.status, 404);
    let by_key = Request::get("/v2/sandboxes").header("x-api-key", secret).body(Body::empty()).unwrap();
    assert_eq!(server.send(by_key).await.status, 401);

    let team = server.fixture.team.id;
    let made = server.admin("POST", &format!("/admin/teams/{team}/api-keys"), r#"{"name":"a"}"#).await;
    assert_eq!(made.status, 201);
    let id = made.body["id"].as_str().unwrap();
    let path = format!("/admin/teams/{team}/api-keys/{id}");
    assert_eq!(server.admin("DELETE", &path, "").await.status, 204);
    let teams = server.admin("GET", "/teams", "").await;
    assert_eq!(teams.body[0]["isDefault"], true);
}

#[tokio::test]
async fn templates_and_the_server_are_described() {
    let server = Server::new().await;
    let own =
        control::Registration { team: Some(server.fixture.team.id), public: false, ..registration("mine") };
    server.fixture.control.register_template(own).await.unwrap();
    let list = server.call("GET", "/templates", "").await.body;
    assert_eq!(list.as_array().unwrap().len(), 2);
    let base =
        list.as_array().unwrap().iter().find(|template| template["aliases"] == json!(["base"])).unwrap();
    assert_eq!(base["createdBy"], Value::Null);
    assert!(base.as_object().unwrap().contains_key("lastSpawnedAt"));
    assert_eq!((&base["buildStatus"], &base["public"]), (&json!("ready"), &json!(true)));
    for alias in ["base", "mine", "default%2Fmine", "base:default"] {
        let answer = server.call("GET", &format!("/templates/aliases/{alias}"), "").await;
        assert_eq!(answer.status, 200, "{alias}: {}", answer.body);
    }
    let engine = server.call("GET", "/cofferdam/v1/engine", "").await.body;
    assert_eq!((&engine["name"], &engine["isolation"]), (&json!("test"), &json!("shared_kernel")));

    let made = server.create(json!({"templateID": "base"})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let metrics = server.call("GET", &format!("/sandboxes/{id}/metrics"), "").await.body;
    assert_eq!((&metrics[0]["memTotal"], &metrics[0]["diskTotal"]), (&json!(1000), &json!(50)));
    let past = server.call("GET", &format!("/sandboxes/{id}/metrics?start=1&end=2"), "").await;
    assert_eq!(past.body, json!([]));
    let many = server.call("GET", &format!("/sandboxes/metrics?sandbox_ids={id},inone"), "").await.body;
    assert_eq!(keys(&many["sandboxes"]), [id]);
    let health = server.send(Request::get("/health").body(Body::empty()).unwrap()).await;
    assert_eq!(health.status, 200);
}

#[tokio::test]
async fn only_the_owner_sees_how_often_a_template_is_started() {
    let server = Server::new().await;
    let own =
        control::Registration { team: Some(server.fixture.team.id), public: true, ..registration("mine") };
    server.fixture.control.register_template(own).await.unwrap();
    for template in ["base", "mine", "mine"] {
        server.create(json!({"templateID": template})).await;
    }
    let list = server.call("GET", "/templates", "").await.body;
    let counts: Vec<(&Value, bool)> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|template| (&template["spawnCount"], template["lastSpawnedAt"].is_string()))
        .collect();
    // Newest first.
    assert_eq!(counts, [(&json!(2), true), (&json!(0), false)]);
}

#[tokio::test]
async fn browsers_may_ask_first() {
    let server = Server::new().await;
    let preflight = Request::options("/v2/sandboxes")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "x-api-key,lang")
        .body(Body::empty())
        .unwrap();
    let answer = server.send(preflight).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(answer.headers["access-control-allow-headers"], "x-api-key,lang");
    let plain = Request::get("/nowhere").header("origin", "https://app.example").body(Body::empty()).unwrap();
    let answer = server.send(plain).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["access-control-allow-origin"]),
        (404, &"*".parse().unwrap())
    );
}
