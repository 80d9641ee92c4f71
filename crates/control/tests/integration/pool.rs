//! The pool: which create gets a pre-started sandbox, what the sandbox learns about its owner, and what happens to unused ones.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use control::testing::Fixture;
use control::{ControlError, PoolReport};
use engine::{EngineError, ExitReason};

fn report(fixture: &Fixture) -> Option<PoolReport> {
    fixture.control.pool().into_iter().next()
}

/// Yields until a condition holds.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn with_waiting(count: usize) -> Fixture {
    let fixture = Fixture::new().await;
    fixture.control.set_pool("base", Some(count)).await.unwrap();
    until("they wait", || report(&fixture).is_some_and(|report| report.ready == count)).await;
    fixture
}

#[tokio::test]
async fn a_create_takes_one_that_waits_and_makes_it_its_own() {
    let fixture = with_waiting(2).await;
    let before = fixture.engine.starting.load(Ordering::SeqCst);
    assert_eq!((fixture.engine.alive(), fixture.control.running_count()), (2, 0), "they are nobody's");
    let made = fixture
        .create_with(|request| {
            request.env_vars = [("A".to_owned(), "b".to_owned())].into();
            request.allow_internet_access = Some(false);
        })
        .await
        .unwrap();
    let guest = fixture.guest(&made.info.id);
    let init = guest.init().unwrap();
    assert_ne!(init["accessToken"], made.envd_token, "what opens it from outside stays outside");
    assert_eq!(init["accessToken"], fixture.control.inner_token(&made.info.id));
    assert_eq!(init["envVars"], serde_json::json!({"A": "b", "FROM_TEMPLATE": "1"}));
    assert_eq!(init["teamID"], fixture.team.id.to_string());
    assert_ne!(guest.egress(), net::EgressPolicy::default(), "its network rules are not the asked for ones");
    let report = report(&fixture).unwrap();
    assert_eq!((report.hits, report.misses, report.fixed), (1, 0, Some(2)));
    until("it is made up for", || fixture.engine.alive() == 3).await;
    assert_eq!(fixture.engine.starting.load(Ordering::SeqCst), before + 1);
    let another = fixture.create().await.unwrap();
    assert_ne!((another.info.id, another.envd_token), (made.info.id, made.envd_token));
}

#[tokio::test]
async fn one_that_died_is_never_handed_out() {
    let fixture = with_waiting(1).await;
    // The next start fails, so the pool cannot replace the dead sandbox before the create.
    fixture.engine.fail_next(EngineError::Died("no".to_owned()));
    fixture.engine.end_all(&ExitReason::Signalled(9));
    let made = fixture.create().await;
    let made = if made.is_ok() { made } else { fixture.create().await };
    let made = made.unwrap();
    assert!(fixture.control.get(fixture.team.id, &made.info.id).is_ok());
    assert_eq!(report(&fixture).unwrap().hits, 0);
}

#[tokio::test]
async fn those_nobody_wants_are_ended() {
    let fixture = with_waiting(3).await;
    fixture.control.set_pool("base", Some(1)).await.unwrap();
    until("two are ended", || fixture.engine.alive() == 1).await;
    let made = fixture.create().await.unwrap();
    fixture.control.shutdown().await;
    assert_eq!(fixture.engine.alive(), 1, "only the one with an owner lives on");
    assert!(fixture.engine.sandbox(&made.info.id).unwrap().init().is_some());
}

#[tokio::test]
async fn demand_makes_them_wait_and_a_limit_holds() {
    let fixture = Fixture::with(|config| config.pool_max = 2).await;
    assert!(fixture.control.pool().is_empty());
    for _ in 0..5 {
        fixture.create().await.unwrap();
    }
    until("they wait", || report(&fixture).is_some_and(|report| report.ready == 2)).await;
    assert!(report(&fixture).unwrap().wanted >= 2);
    fixture.engine.scarcity.notify_one();
    until("memory is given back", || report(&fixture).is_some_and(|report| report.ready == 0)).await;
}

#[tokio::test]
async fn a_wish_is_kept_across_restarts_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pool.json");
    let fixture = Fixture::with(|config| config.pool_file = Some(file.clone())).await;
    assert!(matches!(
        fixture.control.set_pool("none", Some(1)).await,
        Err(ControlError::TemplateNotFound(_))
    ));
    assert!(matches!(fixture.control.set_pool("base", Some(100_000)).await, Err(ControlError::Invalid(_))));
    fixture.control.set_pool("base", Some(1)).await.unwrap();
    let again = fixture.reopen_with(|config| config.pool_file = Some(file)).await;
    let first = || again.pool().into_iter().next();
    until("one is pre-started without a create", || first().is_some_and(|report| report.ready == 1)).await;
    let report = first().unwrap();
    assert_eq!(report.fixed, Some(1));
    again.set_pool("base", None).await.unwrap();
    assert_eq!(again.pool().into_iter().next().and_then(|report| report.fixed), None);
}
