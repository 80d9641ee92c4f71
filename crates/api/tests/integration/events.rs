//! Events and webhooks on the wire: shapes, filters, statuses.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::Server;
use serde_json::{Value, json};

#[tokio::test]
async fn events_are_listed_filtered_and_paged() {
    let server = Server::new().await;
    let id = server.create().await;
    server.call("POST", &format!("/sandboxes/{id}/timeout"), json!({"timeout": 60})).await.expect(204);
    server.call("DELETE", &format!("/sandboxes/{id}"), Value::Null).await.expect(204);

    let events = server.get(&format!("/events/sandboxes/{id}")).await.expect(200);
    let labels: Vec<_> = events.as_array().unwrap().iter().map(|event| &event["eventLabel"]).collect();
    assert_eq!(labels, ["kill", "update", "create"], "newest first");
    let created = &events[2];
    assert_eq!(created["type"], "sandbox.lifecycle.created");
    assert_eq!((&created["version"], &created["sandboxId"]), (&json!("v2"), &json!(id)));
    assert_eq!(created["eventData"]["sandbox_metadata"], json!({"app": "test"}));
    for key in
        ["id", "timestamp", "sandboxBuildId", "sandboxExecutionId", "sandboxTeamId", "sandboxTemplateId"]
    {
        assert!(created[key].is_string(), "{key}");
    }
    let some = server.get("/events/sandboxes?orderAsc=true&offset=1&limit=1").await.expect(200);
    assert_eq!(some.as_array().unwrap().len(), 1);
    assert_eq!(some[0]["eventLabel"], "update");
    let path = "/events/sandboxes?types=sandbox.lifecycle.killed&types=sandbox.lifecycle.created";
    assert_eq!(server.get(path).await.expect(200).as_array().unwrap().len(), 2);
    assert_eq!(server.get("/events/sandboxes/inobody").await.expect(200), json!([]));
    server.get("/events/sandboxes?limit=101").await.assert_error(400, "limit must be from 1 to 100");
    server.get("/events/sandboxes?limit=0").await.assert_error(400, "limit must be from 1 to 100");
    server
        .get("/events/sandboxes?offset=-1")
        .await
        .assert_error(400, "Invalid offset: not a number of 0 or more");
    assert_eq!(server.get("/events/sandboxes?types=sandbox.born").await.status, 400);
    server.send("GET", "/events/sandboxes", &[], Value::Null).await.expect(401);
}

#[tokio::test]
async fn webhooks_have_their_statuses_and_keep_their_secret() {
    let server = Server::new().await;
    let body = json!({
        "name": "mine", "url": "https://example.com/hook", "events": ["sandbox.lifecycle.killed"],
        "signatureSecret": "hush",
    });
    let made = server.call("POST", "/events/webhooks", body.clone()).await.expect(201);
    let mut keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    keys.sort_unstable();
    assert_eq!(keys, ["createdAt", "enabled", "events", "id", "name", "teamID", "url"]);
    let path = format!("/events/webhooks/{}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.expect(200), made);
    assert_eq!(server.get("/events/webhooks").await.expect(200), json!([made]));
    let changed = server.call("PATCH", &path, json!({"enabled": false})).await.expect(200);
    assert_eq!((&changed["enabled"], &changed["url"]), (&json!(false), &made["url"]));
    server.call("DELETE", &path, Value::Null).await.expect(200);
    server.get(&path).await.assert_error(404, "Webhook not found");
    server.get("/events/webhooks/x").await.assert_error(400, "Invalid webhook ID");
    let mut unknown = body.clone();
    unknown["events"] = json!(["create"]);
    assert_eq!(server.call("POST", "/events/webhooks", unknown).await.status, 400);
    let mut inside = body;
    inside["url"] = json!("http://127.0.0.1:1");
    assert_eq!(server.call("POST", "/events/webhooks", inside).await.status, 400);
}
