//! Teams, people, keys and tokens on the wire: who is let in, with which words others are not.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::{ADMIN, Server};
use serde_json::{Value, json};

const NULL: Value = Value::Null;

#[tokio::test]
async fn the_operator_makes_limits_and_stops_teams() {
    let server = Server::new().await;
    let team = server.admin("POST", "/admin/teams", json!({"name": "Data Science"})).await.expect(201);
    assert_eq!((&team["slug"], &team["isDefault"]), (&json!("data-science"), &json!(false)));
    let again = server.admin("POST", "/admin/teams", json!({"name": "Data Science"})).await;
    again.assert_error(409, "a team with this slug exists already");
    assert_eq!(server.admin("POST", "/admin/teams", json!({"name": "日本"})).await.status, 400);
    let path = format!("/admin/teams/{}", team["teamID"].as_str().unwrap());
    let body = json!({"limits": {"concurrentSandboxes": 1, "maxVCPU": 4}});
    let changed = server.admin("PATCH", &path, body).await.expect(200);
    assert_eq!(changed["limits"]["concurrentSandboxes"], 1);
    assert_eq!(changed["limits"]["maxVCPU"], 4);
    assert_eq!(changed["limits"]["maxLengthHours"], team["limits"]["maxLengthHours"]);
    assert_eq!(server.admin("GET", "/admin/teams", NULL).await.expect(200).as_array().unwrap().len(), 2);
    server.call("GET", "/admin/teams", NULL).await.expect(401);

    let key = server.admin("POST", &format!("{path}/api-keys"), json!({"name": "k"})).await.expect(201);
    let key = [("x-api-key", key["key"].as_str().unwrap())];
    let body = json!({"templateID": "base", "timeout": 60});
    let made = server.send("POST", "/v2/sandboxes", &key, body.clone()).await.expect(201);
    let refused = server.send("POST", "/v2/sandboxes", &key, body.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.headers["should-retry"].to_str().unwrap()), (429, "false"));

    let blocked = json!({"blocked": true, "blockedReason": "unpaid"});
    server.admin("PATCH", &path, blocked).await.expect(200);
    server
        .send("POST", "/v2/sandboxes", &key, body.clone())
        .await
        .assert_error(403, "team is blocked: unpaid");
    server.send("GET", "/v2/sandboxes", &key, NULL).await.expect(200);
    let sandbox = format!("/sandboxes/{}", made["sandboxID"].as_str().unwrap());
    server.send("POST", &format!("{sandbox}/timeout"), &key, json!({"timeout": 9})).await.expect(403);
    server.send("DELETE", &sandbox, &key, NULL).await.expect(204);
    server.admin("PATCH", &path, json!({"banned": true})).await.expect(200);
    server.send("GET", "/v2/sandboxes", &key, NULL).await.assert_error(403, "team is banned");
    let team_id = team["teamID"].as_str().unwrap();
    let for_team = [("x-admin-token", ADMIN), ("x-team-id", team_id)];
    server.send("GET", "/api-keys", &for_team, NULL).await.assert_error(403, "team is banned");
    server.admin("PATCH", &path, json!({"banned": false})).await.expect(200);
    server.send("POST", "/v2/sandboxes", &key, body).await.expect(201);
}

#[tokio::test]
async fn a_teams_sandboxes_are_counted_and_ended_at_once() {
    let server = Server::new().await;
    let team = server.fixture.team.id.to_string();
    let ids = [server.create().await, server.create().await, server.create().await];
    let counts = server.admin("GET", "/admin/sandboxes/running-counts", NULL).await.expect(200);
    assert_eq!(counts, json!({ &team: 3 }));
    let path = format!("/admin/teams/{team}/sandboxes/kill");
    server.call("POST", &path, NULL).await.expect(401);
    let killed = server.admin("POST", &path, NULL).await.expect(200);
    assert_eq!(killed, json!({"killedCount": 3, "failedCount": 0}));
    assert_eq!(
        server.admin("POST", &path, NULL).await.expect(200),
        json!({"killedCount": 0, "failedCount": 0})
    );
    let events = server.get(&format!("/events/sandboxes/{}?limit=1", ids[0])).await.expect(200);
    assert_eq!(events[0]["eventData"]["kill_reason"], "admin");
    let nobody = "/admin/teams/00000000-0000-4000-8000-000000000000/sandboxes/kill";
    server.admin("POST", nobody, NULL).await.assert_error(404, "Team not found");
    assert_eq!(server.admin("GET", "/admin/sandboxes/running-counts", NULL).await.expect(200), json!({}));
}

#[tokio::test]
async fn people_sign_in_with_access_tokens() {
    let server = Server::new().await;
    let user = server.admin("POST", "/admin/users", json!({"email": "Ann@Example.com"})).await.expect(201);
    assert_eq!(user["email"], "ann@example.com");
    assert_eq!(server.admin("POST", "/admin/users", json!({"email": "ann@example.com"})).await.status, 409);
    assert_eq!(server.admin("POST", "/admin/users", json!({"email": "nobody"})).await.status, 400);
    let token =
        server.admin("POST", "/access-tokens", json!({"name": "t", "userID": user["id"]})).await.expect(201);
    let secret = token["token"].as_str().unwrap();
    assert!(secret.starts_with("sk_e2b_") && secret.len() == 47, "{secret}");
    assert_eq!(token["mask"]["maskedValueSuffix"], secret[43..]);
    let bearer = format!("Bearer {secret}");
    let bearer = [("authorization", bearer.as_str())];

    assert_eq!(server.send("GET", "/teams", &bearer, NULL).await.expect(200), json!([]));
    server
        .send("GET", "/v2/sandboxes", &bearer, NULL)
        .await
        .assert_error(401, "Invalid auth provider token teamID.\nyou are not a member of any team");
    let team = server.fixture.team.id.to_string();
    let member = format!("/admin/teams/{team}/members/{}", user["id"].as_str().unwrap());
    server.admin("PUT", &member, NULL).await.expect(204);
    let teams = server.send("GET", "/teams", &bearer, NULL).await.expect(200);
    assert_eq!((&teams[0]["teamID"], &teams[0]["isDefault"]), (&json!(team), &json!(true)));
    let key = [("x-api-key", teams[0]["apiKey"].as_str().unwrap())];
    server.send("GET", "/v2/sandboxes", &key, NULL).await.expect(200);

    // Signing in makes keys, and not without end.
    for _ in 0..25 {
        server.send("GET", "/teams", &bearer, NULL).await.expect(200);
    }
    let keys = server.send("GET", "/api-keys", &bearer, NULL).await.expect(200);
    let logins = keys.as_array().unwrap().iter().filter(|key| key["name"] == "CLI login/configure");
    assert_eq!(logins.count(), 20);

    let made = server.send("POST", "/api-keys", &bearer, json!({"name": "mine"})).await.expect(201);
    assert!(made["key"].as_str().unwrap().starts_with("e2b_"));
    let other = [bearer[0], ("x-team-id", "00000000-0000-4000-8000-000000000000")];
    server
        .send("GET", "/api-keys", &other, NULL)
        .await
        .assert_error(401, "Invalid auth provider token teamID.\nyou are not a member of this team");
    let path = format!("/access-tokens/{}", token["id"].as_str().unwrap());
    server.send("DELETE", &path, &bearer, NULL).await.expect(204);
    server.send("GET", "/teams", &bearer, NULL).await.assert_error(
        401,
        "Invalid Access token, try to login again by running `e2b auth login`.\n\
         Cannot get the user for the given access token",
    );
    server.admin("DELETE", &path, NULL).await.assert_error(404, "Access token not found");
    server.admin("DELETE", &member, NULL).await.expect(204);
    server.admin("DELETE", &member, NULL).await.expect(404);
}

#[tokio::test]
async fn refusals_name_the_credential_that_was_tried() {
    let server = Server::new().await;
    let refused = async |headers: &[(&str, &str)], text: &str| {
        server.send("GET", "/v2/sandboxes", headers, NULL).await.assert_error(401, text);
    };
    refused(&[], "authorization header is missing").await;
    refused(
        &[("authorization", "Bearer ey.x.y")],
        "Invalid auth provider token.\nBackend authentication failed",
    )
    .await;
    refused(
        &[("authorization", "sk_e2b_zz")],
        "Invalid Access token, try to login again by running `e2b auth login`.\nInvalid access token format",
    )
    .await;
    refused(&[("x-admin-token", "wrong")], "Invalid Access token.\nInvalid Access token.").await;
    refused(&[("x-api-key", "sk_1"), ("x-admin-token", "wrong")], "authorization header is malformed").await;
    // One good credential is enough.
    let key = server.fixture.key.clone();
    let mixed = [("x-api-key", key.as_str()), ("authorization", "Bearer nonsense")];
    server.send("GET", "/v2/sandboxes", &mixed, NULL).await.expect(200);
    let mixed = [("x-api-key", "e2b_00"), ("x-admin-token", ADMIN)];
    server.send("GET", "/v2/sandboxes", &mixed, NULL).await.expect(200);
    let nowhere = [("x-admin-token", ADMIN), ("x-team-id", "00000000-0000-4000-8000-000000000000")];
    server.send("GET", "/v2/sandboxes", &nowhere, NULL).await.assert_error(404, "Team not found");
    let malformed = [("x-admin-token", ADMIN), ("x-team-id", "x")];
    server.send("GET", "/v2/sandboxes", &malformed, NULL).await.assert_error(400, "Invalid team ID");
}

#[tokio::test]
async fn the_node_is_described_and_drained() {
    let host = || api::Host { name: "here".to_owned(), cpu_count: 4, ..api::Host::default() };
    let probe = api::HostProbe(std::sync::Arc::new(host));
    let server = Server::with(|_| {}, |config| config.host = probe).await;
    server.create().await;
    let nodes = server.admin("GET", "/nodes", NULL).await.expect(200);
    let node = &nodes[0];
    assert_eq!(
        (&node["id"], &node["status"], &node["sandboxCount"]),
        (&json!("here"), &json!("ready"), &json!(1))
    );
    assert_eq!((&node["createSuccesses"], &node["createFails"]), (&json!(1), &json!(0)));
    assert_eq!((&node["metrics"]["allocatedCPU"], &node["metrics"]["cpuCount"]), (&json!(2), &json!(4)));
    for key in ["serviceInstanceID", "clusterID", "statusChangedAt", "version", "commit"] {
        assert!(node[key].is_string(), "{key}");
    }
    for key in ["memoryUsedBytes", "memoryTotalBytes", "hugePagesTotal", "hugePageSizeBytes", "cpuPercent"] {
        assert!(node["metrics"][key].is_u64(), "{key}");
    }
    for key in ["cpuFamily", "cpuModel", "cpuModelName", "cpuArchitecture"] {
        assert!(node["machineInfo"][key].is_string(), "{key}");
    }
    server.admin("GET", "/nodes/there", NULL).await.assert_error(404, "Node not found");
    server.call("GET", "/nodes", NULL).await.expect(401);

    server.admin("POST", "/nodes/here", json!({"status": "draining"})).await.expect(204);
    assert_eq!(server.admin("GET", "/nodes/here", NULL).await.expect(200)["status"], "draining");
    let refused = server.call("POST", "/v2/sandboxes", json!({"templateID": "base"})).await;
    assert_eq!(refused.status, 503);
    assert!(refused.body["message"].as_str().unwrap().contains("draining"), "{}", refused.body);
    server.admin("POST", "/nodes/here", json!({"status": "unhealthy"})).await.expect(409);
    server.admin("POST", "/nodes/here", json!({"status": "ready"})).await.expect(204);
    server.create().await;
}

/// Nobody learns whether another team has a private template of a name or id.
#[tokio::test]
async fn a_private_template_of_another_team_is_like_none() {
    let server = Server::new().await;
    let own = control::Registration {
        team: Some(server.fixture.team.id),
        public: false,
        ..control::testing::registration("mine")
    };
    let (id, build) = server.fixture.control.register_template(own).await.unwrap();
    let team = server.admin("POST", "/admin/teams", json!({"name": "Others"})).await.expect(201);
    let path = format!("/admin/teams/{}/api-keys", team["teamID"].as_str().unwrap());
    let key = server.admin("POST", &path, json!({"name": "k"})).await.expect(201);
    let key = [("x-api-key", key["key"].as_str().unwrap())];

    let (slug, id, build) = (&server.fixture.team.slug, id.to_string(), build.to_string());
    let absent = ids::TemplateId::generate().to_string();
    let named = (format!("{slug}/mine"), format!("{slug}/none"));
    for (present, absent) in [(&named.0, &named.1), (&id, &absent)] {
        for (method, path, body) in [
            ("GET", "/templates/aliases/NAME", NULL),
            ("GET", "/templates/aliases/NAME:default", NULL),
            ("GET", "/templates/NAME", NULL),
            ("DELETE", "/templates/NAME", NULL),
            ("PATCH", "/templates/NAME", json!({"public": true})),
            ("PATCH", "/v2/templates/NAME", json!({"public": true})),
            ("GET", "/templates/NAME/tags", NULL),
            ("GET", "/templates/NAME/tags/count", NULL),
            ("GET", "/templates/NAME/tags/exists?tags=default", NULL),
            ("GET", "/templates/NAME/tags/groups", NULL),
            ("GET", "/templates/NAME/tags/default/assignments", NULL),
            ("POST", "/templates/NAME", json!({"dockerfile": "FROM base"})),
            ("GET", "/templates/NAME/builds/BUILD/status", NULL),
            ("GET", "/templates/NAME/builds/BUILD/logs", NULL),
            ("POST", "/templates/tags", json!({"target": "NAME:default", "tags": ["x"]})),
            ("DELETE", "/templates/tags", json!({"name": "NAME", "tags": ["x"]})),
            ("POST", "/v2/sandboxes", json!({"templateID": "NAME"})),
            ("POST", "/v2/sandboxes", json!({"templateID": "NAME:other"})),
        ] {
            let mut told = Vec::new();
            for name in [present, absent] {
                let path = path.replace("NAME", &name.replace('/', "%2F")).replace("BUILD", &build);
                let body = serde_json::from_str(&body.to_string().replace("NAME", name)).unwrap();
                let response = server.send(method, &path, &key, body).await;
                told.push((response.status, response.body.to_string().replace(name, "NAME")));
            }
            assert_eq!(told[0], told[1], "{method} {path} of {present}");
            assert!(told[0].0.is_client_error(), "{method} {path}: {}", told[0].1);
        }
    }
}
