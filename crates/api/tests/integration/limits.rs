//! Limits on the wire: how big, how long, how many, how often; and what a refused client is told.
#![allow(missing_docs, clippy::unwrap_used)]

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;

use crate::common::Server;
use serde_json::{Value, json};

async fn limited(rules: &[&str]) -> Server {
    let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Server::with(|_| {}, |config| config.rate_limits = rules).await
}

fn header<'a>(answer: &'a crate::common::Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn routes_have_rates_for_each_team() {
    let server = limited(&["GET /sandboxes/{sandboxID}=2/h"]).await;
    let id = server.create().await;
    let path = format!("/sandboxes/{id}");
    let first = server.get(&path).await;
    assert_eq!(first.status, 200);
    assert_eq!(header(&first, "ratelimit-limit"), Some("2"));
    assert_eq!(header(&first, "ratelimit-remaining"), Some("1"));
    assert_eq!((header(&first, "ratelimit-reset"), header(&first, "retry-after")), (Some("1800"), None));
    // Another sandbox, the same route.
    assert_eq!(server.get("/sandboxes/iother").await.status, 404);
    let refused = server.get(&path).await;
    refused.assert_error(429, "Rate limit exceeded");
    assert_eq!(header(&refused, "ratelimit-remaining"), Some("0"));
    assert_eq!(header(&refused, "should-retry"), Some("true"));
    let wait: u32 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");

    let free = server.call("POST", &format!("{path}/timeout"), json!({"timeout": 60})).await;
    assert_eq!((free.status.as_u16(), header(&free, "ratelimit-limit")), (204, None), "another route");
    let team = server.admin("POST", "/admin/teams", json!({"name": "other"})).await.expect(201);
    let team = format!("/admin/teams/{}/api-keys", team["teamID"].as_str().unwrap());
    let key = server.admin("POST", &team, json!({"name": "k"})).await.expect(201);
    let key = [("x-api-key", key["key"].as_str().unwrap())];
    assert_eq!(server.send("GET", &path, &key, Value::Null).await.status, 404, "another team's allowance");
}

#[tokio::test]
async fn one_rule_can_be_about_everything_and_none_is_the_default() {
    let server = limited(&["*=1/h:3"]).await;
    server.create().await;
    server.get("/v2/sandboxes").await.expect(200);
    server.get("/templates").await.expect(200);
    server.get("/events/webhooks").await.assert_error(429, "Rate limit exceeded");
    // Whoever is not let in takes nothing from anybody.
    let stranger = server.send("GET", "/v2/sandboxes", &[("x-api-key", "e2b_00")], Value::Null).await;
    assert_eq!((stranger.status.as_u16(), header(&stranger, "ratelimit-limit")), (401, None));
    assert_eq!(server.admin("GET", "/admin/teams", Value::Null).await.status, 200);

    let server = Server::new().await;
    for _ in 0..50 {
        assert_eq!(header(&server.get("/v2/sandboxes").await, "ratelimit-limit"), None);
    }
}

#[tokio::test]
async fn a_team_has_sandboxes_no_larger_and_no_longer_than_it_may() {
    let server = Server::new().await;
    let team = format!("/admin/teams/{}", server.fixture.team.id);
    let create = async |body: Value| server.call("POST", "/v2/sandboxes", body).await;
    let limit = async |limits: Value| {
        server.admin("PATCH", &team, json!({"limits": limits})).await.expect(200);
    };
    // `base` has 2 processors, 512 MiB of memory and 1024 MiB of disk here.
    for (limits, text) in [
        (json!({"maxVCPU": 1}), "CPU count can't be higher than 1 ("),
        (json!({"maxVCPU": 2, "maxMemoryMB": 256}), "Memory can't be higher than 256 MiB ("),
        (json!({"maxMemoryMB": 512, "maxDiskMB": 512}), "Disk size can't be higher than 512 MiB ("),
    ] {
        limit(limits).await;
        let refused = create(json!({"templateID": "base"})).await.expect(400);
        assert!(refused["message"].as_str().unwrap().starts_with(text), "{refused}");
    }
    limit(json!({"maxDiskMB": 1024, "maxLengthHours": 1})).await;
    let long = create(json!({"templateID": "base", "timeout": 3601})).await;
    long.assert_error(400, "Timeout cannot be greater than 1 hours");
    limit(json!({"concurrentSandboxes": 1})).await;
    create(json!({"templateID": "base", "timeout": 3600})).await.expect(201);
    let refused = create(json!({"templateID": "base"})).await.expect(429);
    let text = refused["message"].as_str().unwrap();
    assert!(text.starts_with("you have reached the maximum number of concurrent sandboxes (1)"), "{text}");
}

#[tokio::test]
async fn builds_have_places_too() {
    let server = Server::new().await;
    let team = server.fixture.team.id;
    let body = json!({"limits": {"concurrentBuilds": 1}});
    server.admin("PATCH", &format!("/admin/teams/{team}"), body).await.expect(200);
    let control = &server.fixture.control;
    let team = control.team(team).unwrap();
    let place = control.builds().reserve(&team).unwrap();
    let refused = control.builds().reserve(&team).unwrap_err().to_string();
    assert!(refused.starts_with("you have reached the maximum number of concurrent template builds (1)"));
    drop(place);
    control.builds().reserve(&team).unwrap();
}

/// A body of which nothing arrives any more would keep what its request holds for ever.
#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let server = Server::new().await;
    tokio::time::pause();
    let begun = futures::stream::iter([Ok::<_, std::io::Error>("{\"templateID\": ")]);
    let body = Body::from_stream(begun.chain(futures::stream::pending()));
    let request = Request::post("/sandboxes").header("x-api-key", &server.fixture.key).body(body).unwrap();
    let refused = server.answer(request).await;
    refused.assert_error(400, "the request body broke off, or nothing of it arrived for a minute");
}
