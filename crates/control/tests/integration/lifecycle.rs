//! A sandbox's life through the control plane, over real sockets: created, found, given more time, ended.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control::testing::{Fixture, registration, request};
use control::{ControlError, EndReason, IdempotencyKey, ListQuery, NetworkUpdate};
use engine::{EngineError, ExitReason};
use store::{NetworkConfig, SandboxState};

/// A sandbox that is still being killed counts, or a team could have any number of such.
#[tokio::test]
async fn what_does_not_die_keeps_its_place() {
    let mut fixture = Fixture::new().await;
    Arc::make_mut(&mut fixture.team).limits.concurrent_sandboxes = 1;
    let id = fixture.create().await.unwrap().info.id;
    fixture.engine.states.undying.store(true, Ordering::SeqCst);
    assert!(matches!(fixture.control.kill(fixture.team.id, &id).await, Err(ControlError::Engine(_))));
    assert!(fixture.control.get(fixture.team.id, &id).is_err(), "it is in no list any more");
    assert!(matches!(fixture.create().await, Err(ControlError::TeamLimit(1))));
    fixture.engine.states.undying.store(false, Ordering::SeqCst);
    fixture.engine.sandbox(&id).unwrap().die(ExitReason::Signalled(9));
    let created = async || {
        while fixture.create().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), created()).await.unwrap();
}

#[tokio::test]
async fn create_introduces_itself_to_the_agent() {
    let fixture = Fixture::new().await;
    let made = fixture
        .create_with(|request| {
            request.env_vars = [("A".to_owned(), "b".to_owned())].into();
            request.metadata = [("k".to_owned(), "v".to_owned())].into();
        })
        .await
        .unwrap();
    let init = fixture.guest(&made.info.id).init().unwrap();
    assert_ne!(init["accessToken"], made.envd_token, "what opens it from outside stays outside");
    assert_eq!(init["accessToken"], fixture.control.inner_token(&made.info.id));
    assert_eq!(init["envVars"], serde_json::json!({"A": "b", "FROM_TEMPLATE": "1"}));
    assert_eq!(init["defaultUser"], "user");
    assert_eq!(init["sandboxID"], made.info.id.as_str());
    assert_eq!(init["templateID"], fixture.template.as_str());
    assert!(init["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(made.traffic_token, None);
    assert_eq!(made.info.end_at - made.info.started_at, time::Duration::seconds(300));
    assert_eq!(made.info.details.alias.as_deref(), Some("base"));

    let record = fixture.store.sandbox(&made.info.id).await.unwrap().unwrap();
    assert_eq!(record.state, SandboxState::Running);
    assert_eq!(record.end_at, made.info.end_at);
    let found = fixture.control.get(fixture.team.id, &made.info.id).unwrap();
    assert_eq!(found.info, made.info);
}

#[tokio::test]
async fn failed_starts_leave_nothing_and_say_why() {
    let fixture = Fixture::with(|config| config.start_timeout = Duration::from_millis(300)).await;
    fixture.engine.fail_next(EngineError::Exhausted("no slots".to_owned()));
    let error = fixture.create().await.unwrap_err();
    assert!(matches!(error, ControlError::Capacity(_)), "{error}");
    assert!(error.to_string().starts_with("Failed to place sandbox: "), "{error}");
    fixture.engine.fail_next(EngineError::Died("code 1".to_owned()));
    assert!(matches!(fixture.create().await, Err(ControlError::StartFailed(_))));

    fixture.engine.silent_envd.store(true, Ordering::SeqCst);
    assert!(matches!(fixture.create().await, Err(ControlError::StartTimeout(_))));
    let page = fixture.control.list(&fixture.team, &ListQuery::default()).unwrap();
    assert!(page.items.is_empty());
    // The clean-up runs in a task: a create that succeeds shows that it is done.
    fixture.engine.silent_envd.store(false, Ordering::SeqCst);
    fixture.create().await.unwrap();
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_a_complete_sandbox() {
    let fixture = Fixture::new().await;
    fixture.engine.gate.forget_permits(usize::MAX);
    let control = fixture.control.clone();
    let team = fixture.team.clone();
    let caller = tokio::spawn(async move { control.create(&team, request(), None).await });
    fixture.engine.at_gate.notified().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    fixture.engine.gate.add_permits(1);
    fixture.control.shutdown().await;
    let control = fixture.reopen().await;
    let page = control.list(&fixture.team, &ListQuery::default()).unwrap();
    assert_eq!(page.items.len(), 1);
    assert!(fixture.guest(&page.items[0].id).init().is_some());
}

#[tokio::test]
async fn timers_follow_the_last_word() {
    let fixture = Fixture::new().await;
    let made = fixture.create_with(|request| request.timeout = 1).await.unwrap();
    let id = &made.info.id;
    fixture.control.set_timeout(&fixture.team, id, 2).await.unwrap();
    let live = fixture.control.find_running(id).unwrap();
    let started = std::time::Instant::now();
    live.wait_ended().await;
    let lived = started.elapsed();
    assert!(lived > Duration::from_millis(1900) && lived < Duration::from_millis(2200), "{lived:?}");
    assert!(fixture.control.find_running(id).is_none(), "withdrawn before its connections are cut");
    assert_eq!(*live.ended().borrow(), Some(EndReason::Timeout));
}

#[tokio::test]
async fn zero_ends_at_once_and_connect_only_adds() {
    let fixture = Fixture::new().await;
    let made = fixture.create().await.unwrap();
    let id = &made.info.id;
    let (same, _) = fixture.control.connect(&fixture.team, id, 10, true).await.unwrap();
    assert_eq!(same.info.end_at, made.info.end_at, "to the microsecond");
    assert_eq!(same.envd_token, made.envd_token);
    let (longer, _) = fixture.control.connect(&fixture.team, id, 600, true).await.unwrap();
    assert!(longer.info.end_at > made.info.end_at);
    fixture.control.refresh(&fixture.team, id, None).await.unwrap();
    assert_eq!(fixture.control.get(fixture.team.id, id).unwrap().info.end_at, longer.info.end_at);
    assert!(matches!(
        fixture.control.refresh(&fixture.team, id, Some(3601)).await,
        Err(ControlError::Invalid(_))
    ));
    fixture.control.set_timeout(&fixture.team, id, 0).await.unwrap();
    assert!(matches!(fixture.control.get(fixture.team.id, id), Err(ControlError::SandboxNotFound(_))));
    assert_eq!(fixture.engine.alive(), 0);
    assert!(fixture.control.connect(&fixture.team, id, 10, true).await.is_err());
    let record = fixture.store.sandbox(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.end_reason.as_deref()), (SandboxState::Ended, Some("timeout")));
}

#[tokio::test]
async fn a_sandbox_that_ends_by_itself_is_gone() {
    let fixture = Fixture::new().await;
    let made = fixture.create().await.unwrap();
    let live = fixture.control.find_running(&made.info.id).unwrap();
    fixture.guest(&made.info.id).die(ExitReason::Exited(3));
    live.wait_ended().await;
    assert_eq!(*live.ended().borrow(), Some(EndReason::Exited(ExitReason::Exited(3))));
    assert!(fixture.control.find_running(&made.info.id).is_none());
    let refused = fixture.control.dial(&made.info.id, envd_api::PORT).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::NotConnected);
    assert!(fixture.control.kill(fixture.team.id, &made.info.id).await.is_err());
}

#[tokio::test]
async fn limits_are_kept_and_given_back() {
    let fixture = Fixture::with(|config| config.default_limits.concurrent_sandboxes = 1).await;
    let made = fixture.create().await.unwrap();
    assert!(matches!(fixture.create().await, Err(ControlError::TeamLimit(1))));
    fixture.control.kill(fixture.team.id, &made.info.id).await.unwrap();
    fixture.create().await.unwrap();
    for (timeout, text) in
        [(0, "Timeout must be greater than 0"), (10_000_000_000, "Timeout cannot be greater than 720 hours")]
    {
        let error = fixture.create_with(|request| request.timeout = timeout).await.unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let fixture = Fixture::with(|config| {
        config.parallel_starts = 1;
        config.start_queue = 0;
    })
    .await;
    fixture.engine.gate.forget_permits(usize::MAX);
    let first = fixture.create();
    tokio::pin!(first);
    tokio::select! {
        _ = &mut first => panic!("the gate is closed"),
        () = fixture.engine.at_gate.notified() => {}
    }
    let refused = fixture.control.create(&fixture.team, request(), None).await;
    assert!(matches!(refused, Err(ControlError::Capacity(_))), "{refused:?}");
    fixture.engine.gate.add_permits(1);
    first.await.unwrap();
}

#[tokio::test]
async fn idempotency_keys_have_one_result() {
    let fixture = Fixture::new().await;
    let key = |body| IdempotencyKey { key: "k-1".to_owned(), body_hash: [body; 32] };
    let create = |body| fixture.control.create(&fixture.team, request(), Some(key(body)));

    fixture.engine.gate.forget_permits(usize::MAX);
    let first = create(1);
    tokio::pin!(first);
    tokio::select! {
        _ = &mut first => panic!("the gate is closed"),
        () = fixture.engine.at_gate.notified() => {}
    }
    assert!(matches!(create(1).await, Err(ControlError::IdempotencyInProgress)));
    assert!(matches!(create(2).await, Err(ControlError::IdempotencyMismatch)));
    fixture.engine.gate.add_permits(1);
    let first = first.await.unwrap();
    let again = create(1).await.unwrap();
    assert_eq!((again.info, again.envd_token), (first.info.clone(), first.envd_token));
    assert!(matches!(create(2).await, Err(ControlError::IdempotencyMismatch)));
    assert_eq!(fixture.engine.alive(), 1);

    fixture.control.kill(fixture.team.id, &first.info.id).await.unwrap();
    assert_eq!(create(1).await.unwrap().info.id, first.info.id, "the result stays the result");
}

#[tokio::test]
async fn network_rules_reach_the_engine_and_are_replaced() {
    let fixture = Fixture::new().await;
    let made = fixture
        .create_with(|request| {
            request.network = Some(NetworkConfig {
                deny_out: Some(vec!["0.0.0.0/0".into()]),
                allow_public_traffic: Some(false),
                ..NetworkConfig::default()
            });
        })
        .await
        .unwrap();
    let id = &made.info.id;
    assert!(made.traffic_token.is_some());
    let one = "1.1.1.1".parse().unwrap();
    assert!(!fixture.guest(id).egress().permits_address(one));
    fixture.control.update_network(&fixture.team, id, NetworkUpdate::default()).await.unwrap();
    assert!(fixture.guest(id).egress().permits_address(one));
    let kept = fixture.control.get(fixture.team.id, id).unwrap().info.details.network.unwrap();
    assert_eq!((kept.allow_public_traffic, kept.deny_out), (Some(false), None));
    let off = NetworkUpdate { allow_internet_access: Some(false), ..NetworkUpdate::default() };
    fixture.control.update_network(&fixture.team, id, off).await.unwrap();
    assert!(!fixture.guest(id).egress().permits_address(one));
}

#[tokio::test]
async fn lists_filter_order_and_page() {
    let fixture = Fixture::new().await;
    let mut other = registration("other");
    other.cpu_count = 1;
    fixture.control.register_template(other).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..5 {
        let made = fixture
            .create_with(|request| {
                request.metadata = [("n".to_owned(), (number % 2).to_string())].into();
                if number == 4 {
                    request.template = "other".to_owned();
                }
            })
            .await
            .unwrap();
        ids.push(made.info.id);
    }
    let list = |query: ListQuery| {
        let control = fixture.control.clone();
        let team = fixture.team.clone();
        async move { control.list(&team, &query) }
    };
    for ascending in [false, true] {
        let mut seen = Vec::new();
        let mut next_token = None;
        loop {
            let query = ListQuery { ascending, limit: Some(2), next_token, ..ListQuery::default() };
            let page = list(query).await.unwrap();
            assert_eq!(page.total_running, Some(5));
            assert!(page.items.len() <= 2);
            seen.extend(page.items.into_iter().map(|info| info.id));
            next_token = page.next_token;
            if next_token.is_none() {
                break;
            }
        }
        if !ascending {
            seen.reverse();
        }
        assert_eq!(seen, ids);
    }
    let count = |query| async { list(query).await.unwrap().items.len() };
    assert_eq!(count(ListQuery { metadata: Some("n=1".into()), ..Default::default() }).await, 2);
    assert_eq!(count(ListQuery { metadata: Some("n=1&x=y".into()), ..Default::default() }).await, 0);
    assert_eq!(count(ListQuery { template: Some("other".into()), ..Default::default() }).await, 1);
    assert_eq!(count(ListQuery { template: Some("nothing".into()), ..Default::default() }).await, 0);
    assert_eq!(count(ListQuery { states: vec![SandboxState::Paused], ..Default::default() }).await, 0);
    let third = fixture.control.get(fixture.team.id, &ids[2]).unwrap().info.started_at;
    assert_eq!(count(ListQuery { started_after: Some(third), ..Default::default() }).await, 3);
    for limit in [0, 101, -1] {
        assert!(list(ListQuery { limit: Some(limit), ..Default::default() }).await.is_err());
    }
    let error = list(ListQuery { template: Some("base:v1".into()), ..Default::default() }).await.unwrap_err();
    assert!(error.to_string().contains("tags are not supported"), "{error}");
}

#[tokio::test]
async fn templates_resolve_as_their_names_say() {
    let fixture = Fixture::new().await;
    let again = fixture.control.register_template(registration("base")).await.unwrap();
    assert_eq!(again.0, fixture.template);
    let own = control::Registration {
        team: Some(fixture.team.id),
        public: false,
        cpu_count: 4,
        ..registration("base")
    };
    let (own, _) = fixture.control.register_template(own).await.unwrap();
    assert_ne!(own, fixture.template, "another namespace");
    for (name, template) in
        [("base", &own), ("default/base", &own), (fixture.template.as_str(), &fixture.template)]
    {
        let made = fixture.create_with(|request| request.template = name.to_owned()).await.unwrap();
        assert_eq!(made.info.template, *template, "{name}");
    }
    for (name, text) in [
        ("nothing", "template 'nothing' not found"),
        ("else/base", "template 'else/base' not found"),
        ("base:v9", "tag 'v9' does not exist for template 'base'"),
        ("a b", "Invalid template reference: invalid template ID: a b"),
    ] {
        let error = fixture.create_with(|request| request.template = name.to_owned()).await.unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    assert!(fixture.control.catalog().template_by_alias(&fixture.team, "base").await.is_ok());
    assert!(fixture.control.catalog().template_by_alias(&fixture.team, "none").await.is_err());
    assert_eq!(fixture.control.catalog().templates_visible_to(fixture.team.id).len(), 2);
}

#[tokio::test]
async fn keys_open_until_they_are_deleted() {
    let fixture = Fixture::new().await;
    let key = fixture.control.create_key(fixture.team.id, "second").await.unwrap();
    assert_eq!(key.secret.len(), 44);
    assert_eq!(fixture.control.authenticate(&key.secret).await.unwrap().0.id, fixture.team.id);
    let stored = fixture.store.keys().await.unwrap();
    assert!(stored.iter().all(|stored| !stored.hash.contains(&key.secret[4..])));
    let listed = fixture.control.list_keys(fixture.team.id).await.unwrap();
    let listed = listed.iter().find(|listed| listed.id == key.record.id).unwrap();
    assert!(listed.last_used.is_some());
    assert_eq!(
        (listed.mask.first.as_str(), listed.mask.last.as_str()),
        (&key.secret[4..6], &key.secret[40..])
    );

    let elsewhere = fixture.reopen().await;
    let foreign = elsewhere.create_key(fixture.team.id, "from another process").await.unwrap();
    assert!(fixture.control.authenticate(&foreign.secret).await.is_ok());

    fixture.control.delete_key(fixture.team.id, key.record.id).await.unwrap();
    assert!(fixture.control.authenticate(&key.secret).await.is_err());
    assert!(fixture.control.delete_key(fixture.team.id, key.record.id).await.is_err());
}

#[tokio::test]
async fn a_crash_loses_no_sandbox() {
    let fixture = Fixture::new().await;
    let denied = NetworkConfig { deny_out: Some(vec!["0.0.0.0/0".into()]), ..NetworkConfig::default() };
    let lives = fixture.create_with(|request| request.network = Some(denied)).await.unwrap();
    let died = fixture.create().await.unwrap();
    let expires = fixture.create().await.unwrap();
    // As after a crash: nothing was closed.
    let past = time::OffsetDateTime::now_utc() - time::Duration::seconds(1);
    fixture.store.set_sandbox_end(&expires.info.id, past).await.unwrap();
    fixture.control.shutdown().await;
    fixture.guest(&died.info.id).die(ExitReason::Exited(0));

    let control = fixture.reopen().await;
    let found = control.get(fixture.team.id, &lives.info.id).unwrap();
    assert_eq!(found.info, lives.info);
    assert_eq!(found.envd_token, lives.envd_token);
    assert!(!fixture.guest(&lives.info.id).egress().permits_address("1.1.1.1".parse().unwrap()));
    assert!(control.get(fixture.team.id, &died.info.id).is_err());
    assert!(control.get(fixture.team.id, &expires.info.id).is_err());
    assert_eq!(fixture.engine.kept.lock().as_slice(), std::slice::from_ref(&lives.info.id));
    assert_eq!(fixture.engine.alive(), 1);
    control.dial(&lives.info.id, envd_api::PORT).await.unwrap();
    control.kill(fixture.team.id, &lives.info.id).await.unwrap();
    assert_eq!(fixture.engine.alive(), 0);
}
