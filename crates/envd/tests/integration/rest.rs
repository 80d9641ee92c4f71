//! Health, settings, tokens and cross-origin rules.

use crate::common::{Envd, Response};
use serde_json::{Value, json};

fn init(envd: &Envd, token: Option<&str>, body: &Value) -> Response {
    let headers: Vec<_> = token.map(|token| ("X-Access-Token", token)).into_iter().collect();
    envd.request("POST", "/init", &headers, body.to_string().as_bytes())
}

#[test]
fn health_needs_no_token() {
    let envd = Envd::start();
    init(&envd, None, &json!({"accessToken": "t"}));
    let answer = envd.get("/health");
    assert_eq!((answer.status, answer.header("cache-control")), (204, Some("no-store")));
    assert_eq!(envd.request("POST", "/health", &[("X-Access-Token", "t")], b"").status, 405);
    assert_eq!(envd.request("GET", "/nope", &[("X-Access-Token", "t")], b"").status, 404);
}

#[test]
fn tokens_are_set_required_replaced_and_removed() {
    let envd = Envd::start();
    assert_eq!(envd.get("/envs").status, 200);
    let answer = init(&envd, None, &json!({"accessToken": "one"}));
    assert_eq!((answer.status, answer.header("x-envd-version")), (204, Some("0.6.13")));
    let answer = envd.get("/envs");
    assert_eq!(answer.status, 401);
    let message = "unauthorized access, please provide a valid access token or method signing if supported";
    assert_eq!(answer.json(), json!({"code": 401, "message": message}));
    assert_eq!(envd.call("process.Process/List", &json!({})).status, 401);

    assert_eq!(init(&envd, None, &json!({"accessToken": "two"})).status, 401);
    assert_eq!(init(&envd, None, &json!({})).status, 401);
    assert_eq!(init(&envd, Some("two"), &json!({"accessToken": "two"})).status, 401);
    assert_eq!(init(&envd, Some("one"), &json!({"accessToken": "two"})).status, 204);
    assert_eq!(envd.request("GET", "/envs", &[("X-Access-Token", "two")], b"").status, 200);
    assert_eq!(init(&envd, Some("two"), &json!({})).status, 204);
    assert_eq!(envd.get("/envs").status, 200);
}

#[test]
fn variables_are_replaced_or_kept_and_old_requests_ignored() {
    let envd = Envd::start();
    let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
    assert_eq!(init(&envd, None, &json!({"envVars": {"A": "1", "B": "1"}, "timestamp": at(1)})).status, 204);
    init(&envd, None, &json!({"timestamp": at(2)}));
    assert_eq!(envd.get("/envs").json(), json!({"A": "1", "B": "1", "E2B_SANDBOX": "true"}));
    init(&envd, None, &json!({"envVars": {"B": "2"}, "timestamp": at(4)}));
    init(&envd, None, &json!({"envVars": {"C": "3"}, "timestamp": at(3)}));
    assert_eq!(envd.get("/envs").json(), json!({"B": "2", "E2B_SANDBOX": "true"}));
    assert_eq!(init(&envd, None, &json!({"timestamp": "yesterday"})).status, 400);
    assert_eq!(envd.request("POST", "/init", &[], b"{").status, 400);
    assert_eq!(envd.request("POST", "/init", &[], b"").status, 204);
}

#[test]
fn default_user_and_directory() {
    let envd = Envd::start();
    init(&envd, None, &json!({"defaultUser": "nobody", "defaultWorkdir": "/usr"}));
    let finished = envd.shell("id -un; pwd").finish();
    assert_eq!(finished.out(), "nobody\n/usr\n");
    init(&envd, None, &json!({"defaultUser": "missing"}));
    let error = envd.shell("true").error();
    assert_eq!(error, ("unauthenticated".to_owned(), "invalid default user: 'missing'".to_owned()));
}

#[test]
fn authorities_and_markers_are_installed() {
    let envd = Envd::start();
    assert_eq!(
        init(&envd, None, &json!({"caBundle": "PEM", "templateID": "t", "hostname": "box"})).status,
        204
    );
    let read = |name: &str| std::fs::read_to_string(envd.path("system").join(name)).expect("written");
    assert_eq!(read("etc/ssl/certs/ca-certificates.crt"), "PEM\n");
    assert_eq!((read("run/e2b/.E2B_SANDBOX"), read("run/e2b/.E2B_TEMPLATE_ID")), ("true".into(), "t".into()));
    assert!(read("etc/hosts").contains("127.0.1.1 box"));
}

#[test]
fn metrics_have_every_field() {
    let envd = Envd::start();
    let metrics = envd.get("/metrics").json();
    for name in [
        "ts",
        "cpu_count",
        "cpu_used_pct",
        "mem_total",
        "mem_used",
        "mem_cache",
        "mem_total_mib",
        "mem_used_mib",
        "disk_used",
        "disk_total",
    ] {
        assert!(metrics[name].is_number(), "{name} in {metrics}");
    }
}

#[test]
fn cross_origin_requests_are_allowed() {
    let envd = Envd::start();
    init(&envd, None, &json!({"accessToken": "t"}));
    let headers = [
        ("Origin", "https://example.org"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "x-access-token,x-metadata-a"),
    ];
    let answer = envd.request("OPTIONS", "/process.Process/Start", &headers, b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some("*")));
    assert_eq!(answer.header("access-control-allow-headers"), Some("x-access-token,x-metadata-a"));
    assert_eq!(answer.header("access-control-max-age"), Some("7200"));
    let answer = envd.request("GET", "/health", &[("Origin", "https://example.org")], b"");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn the_version_is_printed() {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_envd")).arg("--version").output().expect("runs");
    assert_eq!(output.stdout, b"0.6.13\n");
}
