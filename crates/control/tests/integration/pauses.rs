//! Rules of pause, resume, snapshot, fork and rollback: who may do it, what is kept, and what a failure leaves. Real memory is tested
//! with the engines.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control::testing::Fixture;
use control::{ControlError, ForkRequest, ListQuery, PauseRequest, SnapshotQuery};
use engine::EngineError;
use ids::SandboxId;
use store::{EventKind, EventQuery, Lifecycle, PauseFallback, SandboxState};

const FORK: ForkRequest = ForkRequest { timeout: 60, count: 1 };

async fn pause(fixture: &Fixture, id: &SandboxId) -> Result<(), ControlError> {
    fixture.control.pause(fixture.team.id, id, PauseRequest::default()).await
}

fn states(fixture: &Fixture) -> usize {
    fixture.engine.states.kept.lock().len()
}

#[tokio::test]
async fn a_pause_is_listed_and_a_connect_ends_it() {
    let fixture = Fixture::new().await;
    let made = fixture.create().await.unwrap();
    let id = &made.info.id;
    pause(&fixture, id).await.unwrap();
    assert!(fixture.control.find_running(id).is_none());
    assert!(fixture.guest(id).frozen.load(Ordering::SeqCst), "kept, but still");
    let seen = fixture.control.get(fixture.team.id, id).unwrap();
    assert_eq!(seen.info.state, SandboxState::Paused);
    assert_eq!(seen.envd_token, made.envd_token);
    assert!(seen.info.end_at < made.info.end_at, "the time of the pause");
    assert!(matches!(pause(&fixture, id).await, Err(ControlError::Conflict(_))));
    assert!(matches!(
        fixture.control.set_timeout(&fixture.team, id, 10).await,
        Err(ControlError::SandboxNotFound(_))
    ));
    let listed = |states| ListQuery { states, ..ListQuery::default() };
    let count = async |states| fixture.control.list(&fixture.team, &listed(states)).unwrap().items.len();
    assert_eq!(count(vec![SandboxState::Running]).await, 0);
    assert_eq!(count(vec![SandboxState::Paused]).await, 1);

    let (again, resumed) = fixture.control.connect(&fixture.team, id, 60, true).await.unwrap();
    assert!(resumed);
    assert_eq!((again.info.id.clone(), again.envd_token), (id.clone(), made.envd_token));
    assert_eq!(again.info.state, SandboxState::Running);
    assert!(!fixture.guest(id).frozen.load(Ordering::SeqCst));
    let (_, resumed) = fixture.control.connect(&fixture.team, id, 60, true).await.unwrap();
    assert!(!resumed);
    assert_eq!(fixture.store.sandbox(id).await.unwrap().unwrap().state, SandboxState::Running);
    // It happens in the background, but a shutdown waits for it.
    fixture.control.shutdown().await;
    assert_eq!(states(&fixture), 0, "the captured state is not needed any more");
}

#[tokio::test]
async fn a_failed_capture_leaves_it_running() {
    let fixture = Fixture::new().await;
    let made = fixture.create().await.unwrap();
    let id = &made.info.id;
    let fail = || *fixture.engine.states.fail_next.lock() = Some(EngineError::Capture("full".into()));
    fail();
    let error = pause(&fixture, id).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("could not be captured") && !error.contains("full"),
        "the cause is for the log: {error}"
    );
    assert!(!fixture.guest(id).frozen.load(Ordering::SeqCst));
    let live = fixture.control.find_running(id).unwrap();
    assert_eq!(live.end_at(), made.info.end_at);
    live.dial(envd_api::PORT).await.unwrap();
    fail();
    assert!(fixture.control.snapshot(&fixture.team, id, None, true).await.is_err());
    fail();
    assert!(fixture.control.fork(&fixture.team, id, FORK).await.is_err());
    assert_eq!((states(&fixture), fixture.control.running_count()), (0, 1));
    pause(&fixture, id).await.unwrap();
    fixture.control.kill(fixture.team.id, id).await.unwrap();
    assert_eq!((states(&fixture), fixture.engine.alive()), (0, 0), "ended with everything it had");
    assert!(fixture.control.get(fixture.team.id, id).is_err());
}

#[tokio::test]
async fn a_failed_resume_leaves_it_paused() {
    let fixture = Fixture::with(|config| config.keep_frozen = Duration::ZERO).await;
    let id = fixture.create().await.unwrap().info.id;
    pause(&fixture, &id).await.unwrap();
    assert_eq!(fixture.engine.alive(), 0, "nothing is kept in memory");
    fixture.engine.fail_next(EngineError::Restore("damaged".into()));
    assert!(fixture.control.connect(&fixture.team, &id, 60, true).await.is_err());
    assert_eq!(fixture.control.get(fixture.team.id, &id).unwrap().info.state, SandboxState::Paused);
    assert_eq!(states(&fixture), 1);
    fixture.control.resume(&fixture.team, &id, 60, true).await.unwrap();
    let twice = fixture.control.resume(&fixture.team, &id, 60, true).await;
    assert!(matches!(twice, Err(ControlError::Conflict(_))));
}

#[tokio::test]
async fn a_restart_finds_the_paused_and_only_their_states() {
    let fixture = Fixture::new().await;
    let (kept, dropped) = (fixture.create().await.unwrap().info.id, fixture.create().await.unwrap().info.id);
    for id in [&kept, &dropped] {
        pause(&fixture, id).await.unwrap();
    }
    let snapshot = fixture.create().await.unwrap().info.id;
    let entry = fixture.control.snapshot(&fixture.team, &snapshot, None, true).await.unwrap();
    // As if the server had died after the record was finished and before the snapshot was removed.
    fixture.store.finish_sandbox(&dropped, time::OffsetDateTime::now_utc(), "request").await.unwrap();
    let control = fixture.reopen().await;
    assert_eq!(states(&fixture), 2, "one of the paused, one of the snapshot");
    assert_eq!(fixture.engine.alive(), 1, "frozen processes do not outlive the server that kept them");
    let (access, resumed) = control.connect(&fixture.team, &kept, 60, true).await.unwrap();
    assert!(resumed && access.info.id == kept);
    assert!(control.get(fixture.team.id, &dropped).is_err());
    let listed = control.snapshots(&fixture.team, &SnapshotQuery::default()).unwrap();
    assert_eq!(listed.items, [entry]);
}

#[tokio::test]
async fn time_that_runs_out_pauses_if_wanted_and_traffic_wakes() {
    let fixture = Fixture::new().await;
    let with = async |auto_resume| {
        let made = fixture.create_with(|request| {
            request.timeout = 1;
            request.lifecycle = Lifecycle { auto_pause: true, auto_resume, ..Lifecycle::default() };
        });
        let id = made.await.unwrap().info.id;
        fixture.control.find_running(&id).unwrap().wait_ended().await;
        id
    };
    let (waking, sleeping) = (with(true).await, with(false).await);
    assert!(fixture.control.find_wakeable(&sleeping).is_none());
    let waiter = fixture.control.find_wakeable(&waking).unwrap();
    let (one, two) = tokio::join!(fixture.control.wake(waiter.clone()), fixture.control.wake(waiter));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.execution, two.execution, "woken once");
    let left = one.end_at() - time::OffsetDateTime::now_utc();
    assert!(left > time::Duration::seconds(290), "{left}");
    let (_, resumed) = fixture.control.connect(&fixture.team, &sleeping, 60, true).await.unwrap();
    assert!(resumed);
}

/// Code in a sandbox can make captures fail, and must not outlive its time by that.
#[tokio::test]
async fn a_pause_that_fails_again_and_again_ends_in_another_way() {
    let fixture = Fixture::with(|config| config.pause_retry = Duration::from_millis(50)).await;
    let engine = &fixture.engine.states;
    let (control, team) = (&fixture.control, &fixture.team);
    let expiring = async |auto_pause_fallback| {
        let made = fixture.create_with(|request| {
            request.timeout = 1;
            request.lifecycle = Lifecycle { auto_pause: true, auto_pause_fallback, ..Lifecycle::default() };
        });
        made.await.unwrap().info.id
    };
    let last_event = async |id: &SandboxId, kind| {
        let query = EventQuery {
            team: team.id,
            sandbox: Some(id.clone()),
            kinds: vec![kind],
            ascending: false,
            offset: 0,
            limit: 1,
        };
        control.events().list(&query).await.unwrap().first().map(|event| event.body.data.clone())
    };

    engine.memory_fails.store(true, Ordering::SeqCst);
    let id = expiring(PauseFallback::Filesystem).await;
    let paused = async || loop {
        if let Ok(access) = control.get(team.id, &id)
            && let Some(pause) = access.info.pause
        {
            return pause;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let pause = tokio::time::timeout(Duration::from_secs(20), paused()).await.unwrap();
    assert!(!pause.memory, "its files are kept");
    assert_eq!(engine.captures.swap(0, Ordering::SeqCst), 4, "three attempts with memory, one without");
    let event = last_event(&id, EventKind::Paused).await.unwrap();
    assert!(event["fallback_reason"].as_str().unwrap().contains("could not be captured"), "{event:?}");

    let ended = async |id: SandboxId| {
        while control.get(team.id, &id).is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        loop {
            if let Some(event) = last_event(&id, EventKind::Killed).await {
                return event;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let id = expiring(PauseFallback::Kill).await;
    let event = tokio::time::timeout(Duration::from_secs(20), ended(id)).await.unwrap();
    assert_eq!(event["kill_reason"], "pause failed");
    assert_eq!(engine.captures.swap(0, Ordering::SeqCst), 3, "no attempt without memory");

    engine.capture_fails.store(true, Ordering::SeqCst);
    let id = expiring(PauseFallback::Filesystem).await;
    let event = tokio::time::timeout(Duration::from_secs(20), ended(id)).await.unwrap();
    assert_eq!(event["kill_reason"], "pause failed");
    assert_eq!(engine.captures.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn combinations_that_make_no_sense_are_refused() {
    let fixture = Fixture::new().await;
    for (auto_pause, auto_pause_memory, auto_resume, fine) in [
        (false, false, false, false),
        (true, false, true, false),
        (true, false, false, true),
        (true, true, true, true),
        (false, true, true, true),
    ] {
        let made = fixture.create_with(|request| {
            request.lifecycle =
                Lifecycle { auto_pause, auto_pause_memory, auto_resume, ..Lifecycle::default() };
        });
        assert_eq!(made.await.is_ok(), fine, "{auto_pause} {auto_pause_memory} {auto_resume}");
    }
}

#[tokio::test]
async fn a_silent_agent_is_noted_or_refused() {
    let fixture = Fixture::new().await;
    let id = fixture.create().await.unwrap().info.id;
    let closed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    fixture.guest(&id).open_port(envd_api::PORT, closed);
    for request in [
        PauseRequest { require_healthy: true, ..PauseRequest::default() },
        PauseRequest { memory: false, ..PauseRequest::default() },
    ] {
        let refused = fixture.control.pause(fixture.team.id, &id, request).await;
        assert!(matches!(refused, Err(ControlError::EnvdSilent(_))), "{request:?}");
        assert!(fixture.control.find_running(&id).is_some());
    }
    pause(&fixture, &id).await.unwrap();
    let info = fixture.control.get(fixture.team.id, &id).unwrap().info;
    assert!(info.pause.unwrap().unresponsive);
}

#[tokio::test]
async fn snapshots_have_names_that_move_on() {
    let fixture = Fixture::new().await;
    let (control, team) = (&fixture.control, &fixture.team);
    let id = fixture.create().await.unwrap().info.id;
    let nameless = control.snapshot(team, &id, None, true).await.unwrap();
    assert!(nameless.id.ends_with(":default") && nameless.names.is_empty());
    let first = control.snapshot(team, &id, Some("Mine"), true).await.unwrap();
    assert_eq!(
        (first.id.as_str(), &*first.names),
        ("default/mine:default", &["default/mine".to_owned()][..])
    );
    let second = control.snapshot(team, &id, Some("default/mine:v2"), false).await.unwrap();
    assert_eq!(second.id, "default/mine:v2");
    assert_eq!(states(&fixture), 3);
    control.snapshot(team, &id, Some("mine"), true).await.unwrap();
    assert_eq!(states(&fixture), 3, "the state that lost its name is gone");
    assert!(control.snapshot(team, &id, Some("other/mine"), true).await.is_err());
    assert!(control.snapshot(team, &id, Some("bad name"), true).await.is_err());

    let list = |query| control.snapshots(team, &query).unwrap();
    assert_eq!(list(SnapshotQuery::default()).items.len(), 3);
    let named = |name: &str| SnapshotQuery { name: Some(name.to_owned()), ..SnapshotQuery::default() };
    assert_eq!(list(named("mine")).items.len(), 2);
    assert_eq!(list(named("mine:default")).items.len(), 1);
    assert_eq!(list(named("mine:v3")).items.len(), 0);
    assert_eq!(list(named("nobody")).items.len(), 0);
    let page = list(SnapshotQuery { limit: Some(2), ..SnapshotQuery::default() });
    let rest = list(SnapshotQuery { next_token: page.next_token, ..SnapshotQuery::default() });
    assert_eq!((page.items.len(), rest.items.len(), rest.next_token), (2, 1, None));
    assert_eq!(
        control.catalog().templates_visible_to(team.id).len(),
        1,
        "snapshots are not templates to look at"
    );

    let copy = fixture.create_with(|request| request.template = nameless.id.clone()).await.unwrap();
    assert_eq!(copy.info.template, fixture.template, "the template at the bottom");
    let init = fixture.guest(&copy.info.id).init().unwrap();
    assert_ne!(init["accessToken"], copy.envd_token, "what opens it from outside stays outside");
    assert_eq!(init["accessToken"], fixture.control.inner_token(&copy.info.id));
    assert!(init.get("envVars").is_none() && init["seed"].as_str().unwrap().len() == 64, "{init}");
    control.kill(team.id, &id).await.unwrap();
    fixture.create_with(|request| request.template = "mine:v2".to_owned()).await.unwrap();

    control.delete_template(team, &second.id).await.unwrap();
    assert_eq!(list(named("mine")).items.len(), 1, "the other tag stays");
    assert!(matches!(
        control.delete_template(team, &second.id).await,
        Err(ControlError::TemplateNotFound(_))
    ));
    control.delete_template(team, &nameless.id).await.unwrap();
    control.delete_template(team, "mine").await.unwrap();
    assert_eq!(states(&fixture), 0);
    let gone = fixture.create_with(|request| request.template = nameless.id.clone()).await;
    assert!(matches!(gone, Err(ControlError::TemplateNotFound(_))));
}

#[tokio::test]
async fn forks_have_ids_and_tokens_of_their_own() {
    let fixture = Fixture::new().await;
    let made =
        fixture.create_with(|request| request.metadata = [("k".into(), "v".into())].into()).await.unwrap();
    let id = &made.info.id;
    for count in [0, -1, 101] {
        let bad = fixture.control.fork(&fixture.team, id, ForkRequest { count, ..FORK }).await;
        assert!(matches!(bad, Err(ControlError::Invalid(_))), "{count}");
    }
    let forks = fixture.control.fork(&fixture.team, id, ForkRequest { count: 3, ..FORK }).await.unwrap();
    assert_eq!((forks.len(), fixture.control.running_count(), states(&fixture)), (3, 4, 0));
    for fork in forks {
        let fork = fork.unwrap();
        assert!(fork.info.id != *id && fork.envd_token != made.envd_token);
        assert_eq!(fork.info.details.metadata, made.info.details.metadata);
        let init = fixture.guest(&fork.info.id).init().unwrap();
        assert_eq!(init["accessToken"], fixture.control.inner_token(&fork.info.id));
    }
    fixture.engine.fail_next(EngineError::Restore("broken".into()));
    let mixed = fixture.control.fork(&fixture.team, id, ForkRequest { count: 2, ..FORK }).await.unwrap();
    assert_eq!(mixed.iter().filter(|fork| fork.is_ok()).count(), 1, "each by itself");
    pause(&fixture, id).await.unwrap();
    let paused = fixture.control.fork(&fixture.team, id, FORK).await;
    assert!(matches!(paused, Err(ControlError::Conflict(_))));
}

#[tokio::test]
async fn a_rollback_keeps_id_token_and_time() {
    let fixture = Fixture::new().await;
    let made = fixture.create().await.unwrap();
    let id = &made.info.id;
    let entry = fixture.control.snapshot(&fixture.team, id, None, true).await.unwrap();
    let before = fixture.control.find_running(id).unwrap();
    let back = fixture.control.rollback(&fixture.team, id, &entry.id).await.unwrap();
    assert!(before.has_ended(), "its connections are cut");
    assert_eq!((&back.info.id, back.info.end_at, &back.envd_token), (id, made.info.end_at, &made.envd_token));
    assert_eq!((fixture.engine.alive(), fixture.control.running_count(), states(&fixture)), (1, 1, 1));

    let stranger = fixture.create().await.unwrap().info.id;
    let theirs = fixture.control.rollback(&fixture.team, &stranger, &entry.id).await;
    assert!(matches!(theirs, Err(ControlError::Invalid(_))));
    fixture.engine.fail_next(EngineError::Restore("broken".into()));
    assert!(fixture.control.rollback(&fixture.team, id, &entry.id).await.is_err());
    assert_eq!(fixture.control.get(fixture.team.id, id).unwrap().info.state, SandboxState::Paused);
    fixture.control.delete_template(&fixture.team, &entry.id).await.unwrap();
    assert_eq!(states(&fixture), 1, "needed by who is paused at it");
    fixture.control.connect(&fixture.team, id, 60, true).await.unwrap();
}

#[tokio::test]
async fn frozen_processes_go_when_there_are_too_many_or_memory_is_scarce() {
    let fixture = Fixture::with(|config| config.keep_frozen_max = 2).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = fixture.create().await.unwrap().info.id;
        pause(&fixture, &id).await.unwrap();
        ids.push(id);
    }
    let mut exit = engine::Sandbox::exit(&*fixture.guest(&ids[0]));
    exit.wait_for(Option::is_some).await.unwrap();
    assert_eq!(fixture.engine.alive(), 2, "the oldest went");
    fixture.engine.scarcity.notify_one();
    for id in &ids[1..] {
        let mut exit = engine::Sandbox::exit(&*fixture.guest(id));
        exit.wait_for(Option::is_some).await.unwrap();
    }
    for id in &ids {
        assert!(fixture.control.connect(&fixture.team, id, 60, true).await.unwrap().1);
    }
}

#[tokio::test]
async fn a_resume_waits_for_frozen_processes_that_are_being_let_go() {
    let fixture = Fixture::with(|config| config.keep_frozen_max = 1).await;
    let ids = [fixture.create().await.unwrap().info.id, fixture.create().await.unwrap().info.id];
    let states = Arc::clone(&fixture.engine.states);
    let held = states.ends.lock().await;
    for id in &ids {
        pause(&fixture, id).await.unwrap();
    }
    states.at_end.notified().await;
    let resume = fixture.control.connect(&fixture.team, &ids[0], 60, true);
    let mut resume = std::pin::pin!(resume);
    for _ in 0..100 {
        // Lets the task run until it has to wait.
        tokio::select! {
            biased;
            answer = &mut resume => panic!("while the former one is there: {:?}", answer.map(|_| ())),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(held);
    assert!(resume.await.unwrap().1, "it was resumed");
    assert_eq!(fixture.engine.alive(), 2);
}
