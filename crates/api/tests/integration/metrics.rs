//! Metrics on the wire: shapes, ranges, whose they are.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::Server;
use ids::TeamId;

#[tokio::test]
async fn sandboxes_have_samples_in_the_contracts_shape() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let server = Server::with(|config| config.metrics_dir = Some(root), |_| {}).await;
    let id = server.create().await;
    let metrics = server.get(&format!("/sandboxes/{id}/metrics")).await.expect(200);
    let sample = metrics[0].as_object().unwrap();
    let mut keys: Vec<_> = sample.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let wanted = [
        "cpuCount",
        "cpuUsedPct",
        "diskTotal",
        "diskUsed",
        "memCache",
        "memTotal",
        "memUsed",
        "timestamp",
        "timestampUnix",
    ];
    assert_eq!(keys, wanted);
    server
        .get(&format!("/sandboxes/{id}/metrics?start=2&end=1"))
        .await
        .assert_error(400, "Invalid time range for metrics");
    assert_eq!(server.get("/sandboxes/inobody/metrics").await.expect(200), serde_json::json!([]));
    let many = ["i1"; 101].join(",");
    let answer = server.get(&format!("/sandboxes/metrics?sandbox_ids={many}")).await;
    answer.assert_error(400, "at most 100 sandboxes can be asked for");
}

#[tokio::test]
async fn teams_have_figures_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let server = Server::with(|config| config.metrics_dir = Some(root), |_| {}).await;
    let team = server.fixture.team.id;
    server.create().await;
    let series = server.get(&format!("/teams/{team}/metrics")).await.expect(200);
    let last = series.as_array().unwrap().last().unwrap();
    assert_eq!(last["concurrentSandboxes"], 1);
    assert!(last["sandboxStartRate"].is_number() && last["timestampUnix"].is_number());
    let max = server.get(&format!("/teams/{team}/metrics/max?metric=concurrent_sandboxes")).await.expect(200);
    assert_eq!(max["value"], 1.0);
    server
        .get(&format!("/teams/{team}/metrics/max?metric=luck"))
        .await
        .assert_error(400, "metric is concurrent_sandboxes or sandbox_start_rate");
    assert_eq!(server.get(&format!("/teams/{team}/metrics/max")).await.status, 400);
    server
        .get(&format!("/teams/{team}/metrics?start=5&end=4"))
        .await
        .assert_error(400, "start time cannot be after end time");
    server
        .get(&format!("/teams/{}/metrics", TeamId::generate()))
        .await
        .assert_error(403, "You are not allowed to access this team's metrics");
}
