//! Metrics over time: sampled while a sandbox runs, and readable by its team during and after the run.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use control::testing::Fixture;
use control::{ControlError, TeamMetric};
use ids::{SandboxId, TeamId};

async fn fixture(dir: &tempfile::TempDir) -> Fixture {
    let dir = dir.path().to_owned();
    Fixture::with(|config| {
        config.metrics_dir = Some(dir);
        config.sample_every = Duration::from_millis(20);
    })
    .await
}

#[tokio::test]
async fn history_outlives_the_sandbox_and_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture(&dir).await;
    let (control, team) = (&fixture.control, fixture.team.id);
    let before = time::OffsetDateTime::now_utc().unix_timestamp();
    let id = fixture.create().await.unwrap().info.id;

    let latest = control.latest_metrics(team, &[id.clone(), SandboxId::generate()]).await;
    assert_eq!(latest.len(), 1);
    assert_eq!((latest[0].1.mem_total, latest[0].1.disk_total, latest[0].1.cpu_count), (1000, 50, 2));
    let history = control.metrics_history(team, &id, None, None).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].cpu_used_pct, 12.5);

    control.kill(team, &id).await.unwrap();
    assert!(control.latest_metrics(team, std::slice::from_ref(&id)).await.is_empty());
    let after = control.metrics_history(team, &id, None, None).await.unwrap();
    assert_eq!(after.last().map(|sample| sample.cpu_count), Some(2), "ended ones have a past");
    assert!(control.metrics_history(team, &id, Some(0), Some(before - 1)).await.unwrap().is_empty());
    assert!(control.metrics_history(TeamId::generate(), &id, None, None).await.unwrap().is_empty());

    control.shutdown().await;
    let again = self::fixture(&dir).await;
    assert_eq!(again.control.metrics_history(team, &id, None, None).await.unwrap(), after);
}

#[tokio::test]
async fn one_that_is_looked_at_in_its_first_second_gets_no_second_sample_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let fixture = Fixture::with(|config| config.metrics_dir = Some(path)).await;
    let (control, team) = (&fixture.control, fixture.team.id);
    let processor = &fixture.engine.states.processor;
    processor.store(1, Ordering::SeqCst);
    let id = fixture.create().await.unwrap().info.id;
    let history = async || control.metrics_history(team, &id, None, None).await.unwrap();
    let at_first = history().await;
    assert_eq!(at_first.len(), 1);
    // Another sample would show this value.
    processor.store(60_000_000, Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(history().await, at_first);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_ne!(history().await, at_first);
}

#[tokio::test]
async fn what_was_used_before_a_run_is_not_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture(&dir).await;
    let (control, team) = (&fixture.control, fixture.team.id);
    let processor = &fixture.engine.states.processor;
    // As in a booted guest, or in thawed processes.
    processor.store(60_000_000, Ordering::SeqCst);
    let id = fixture.create().await.unwrap().info.id;
    let latest = async || control.latest_metrics(team, std::slice::from_ref(&id)).await[0].1.cpu_used_pct;
    assert_eq!(latest().await, 0.0);
    processor.fetch_add(1_000_000, Ordering::SeqCst);
    while latest().await == 0.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn ranges_that_make_no_sense_are_refused() {
    let fixture = Fixture::new().await;
    let id = SandboxId::generate();
    let history = |start, end| fixture.control.metrics_history(fixture.team.id, &id, start, end);
    let error = history(Some(2), Some(1)).await.unwrap_err();
    assert!(matches!(error, ControlError::Invalid(_)));
    assert_eq!(error.to_string(), "Invalid time range for metrics");
    assert!(history(Some(-1), None).await.is_err());
    assert!(history(Some(1), Some(1)).await.unwrap().is_empty());
}

#[tokio::test]
async fn teams_see_how_many_sandboxes_they_had() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture(&dir).await;
    let team = fixture.team.id;
    for _ in 0..3 {
        fixture.create().await.unwrap();
    }
    let id = fixture.create().await.unwrap().info.id;
    fixture.control.kill(team, &id).await.unwrap();

    let series = fixture.control.team_metrics(team, None, None).await.unwrap();
    assert_eq!(series.iter().map(|step| step.starts).sum::<u32>(), 4);
    assert!(series.iter().any(|step| step.concurrent == 4), "{series:?}");
    let maximum = |metric| fixture.control.team_maximum(team, metric, None, None);
    assert_eq!(maximum(TeamMetric::ConcurrentSandboxes).await.unwrap().1, 4.0);
    assert!(maximum(TeamMetric::SandboxStartRate).await.unwrap().1 > 0.0);
    assert!(fixture.control.team_metrics(TeamId::generate(), None, None).await.unwrap().is_empty());
}
