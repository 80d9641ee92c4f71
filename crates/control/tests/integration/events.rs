//! Events: recorded once, before the action is acknowledged, and delivered to webhooks with a valid signature.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use control::testing::Fixture;
use control::{ControlError, ForkRequest, NetworkUpdate, PauseRequest, TeamChange};
use engine::ExitReason;
use events::{EventError, NewWebhook, WebhookChange};
use ids::{SandboxId, TeamId};
use store::{Event, EventKind, EventQuery, Lifecycle, Standing};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

fn query(team: TeamId, sandbox: &SandboxId) -> EventQuery {
    EventQuery {
        team,
        sandbox: Some(sandbox.clone()),
        kinds: Vec::new(),
        ascending: true,
        offset: 0,
        limit: 100,
    }
}

async fn events(fixture: &Fixture, id: &SandboxId) -> Vec<Event> {
    fixture.control.events().list(&query(fixture.team.id, id)).await.unwrap()
}

fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn a_life_is_noted_from_begin_to_end() {
    let fixture = Fixture::new().await;
    let made =
        fixture.create_with(|request| request.metadata = [("app".into(), "x".into())].into()).await.unwrap();
    let id = &made.info.id;
    fixture.control.set_timeout(&fixture.team, id, 60).await.unwrap();
    fixture.control.connect(&fixture.team, id, 30, true).await.unwrap();
    fixture.control.refresh(&fixture.team, id, Some(120)).await.unwrap();
    let update = NetworkUpdate { deny_out: Some(vec!["0.0.0.0/0".into()]), ..NetworkUpdate::default() };
    fixture.control.update_network(&fixture.team, id, update).await.unwrap();
    fixture.control.kill(fixture.team.id, id).await.unwrap();
    assert!(fixture.control.kill(fixture.team.id, id).await.is_err());

    use EventKind::{Created, Killed, Updated};
    let events = events(&fixture, id).await;
    assert_eq!(
        kinds(&events),
        [Created, Updated, Updated, Updated, Killed],
        "what changed nothing is not there"
    );
    assert_eq!(events[0].body.data["sandbox_metadata"]["app"], "x");
    assert!(events[1].body.data["set_timeout"].as_str().unwrap().ends_with('Z'));
    assert_eq!(events[3].body.data["network_egress"]["deny_out"][0], "0.0.0.0/0");
    let killed = &events[4].body.data;
    assert_eq!(killed["kill_reason"], "request");
    assert_eq!(
        (&killed["execution"]["vcpu_count"], &killed["execution"]["memory_mb"]),
        (&2.into(), &512.into())
    );
    assert!(killed["execution"]["execution_time"].as_i64().unwrap() >= 0);
    let ours =
        |event: &Event| event.body.execution == events[0].body.execution && event.team == fixture.team.id;
    assert!(events.iter().all(ours));
    assert!(fixture.control.events().list(&query(TeamId::generate(), id)).await.unwrap().is_empty());
    let too_many = EventQuery { limit: 101, ..query(fixture.team.id, id) };
    assert!(matches!(fixture.control.events().list(&too_many).await, Err(EventError::Invalid(_))));
}

#[tokio::test]
async fn ends_of_all_kinds_have_their_reason_and_come_once() {
    let fixture = Fixture::new().await;
    let reason = async |id: &SandboxId| {
        let events = events(&fixture, id).await;
        assert_eq!(kinds(&events), [EventKind::Created, EventKind::Killed]);
        events[1].body.data["kill_reason"].as_str().unwrap().to_owned()
    };
    let expired = fixture.create().await.unwrap().info.id;
    fixture.control.set_timeout(&fixture.team, &expired, 0).await.unwrap();
    assert_eq!(reason(&expired).await, "timeout");

    let exited = fixture.create().await.unwrap().info.id;
    let live = fixture.control.find_running(&exited).unwrap();
    fixture.guest(&exited).die(ExitReason::Exited(1));
    live.wait_ended().await;
    // The event is recorded before the sandbox is killed; a second end waits for the first.
    let _ = fixture.control.kill(fixture.team.id, &exited).await;
    let lost = fixture.create().await.unwrap().info.id;
    let again = fixture.reopen().await;
    again.shutdown().await;
    fixture.guest(&lost).die(ExitReason::Unknown);
    let again = fixture.reopen().await;
    let noted = again.events().list(&query(fixture.team.id, &lost)).await.unwrap();
    assert_eq!(noted.last().unwrap().kind, EventKind::Killed);
    assert_eq!(kinds(&noted).len(), 2, "{noted:?}");
    again.shutdown().await;
}

fn webhook(url: String) -> NewWebhook {
    NewWebhook {
        name: "hook".into(),
        url,
        enabled: true,
        events: vec![EventKind::Created, EventKind::Killed],
        secret: "s3cret".into(),
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    (listener, url)
}

/// Receives one delivery: its headers and body.
async fn receive(listener: &TcpListener, answer: &str) -> (Vec<(String, String)>, String) {
    let (stream, _) =
        tokio::time::timeout(Duration::from_secs(10), listener.accept()).await.unwrap().unwrap();
    let mut stream = BufReader::new(stream);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ") {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let length: usize = header(&headers, "content-length").parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
    (headers, String::from_utf8(body).unwrap())
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    &headers.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name} in {headers:?}")).1
}

async fn fixture() -> Fixture {
    Fixture::with(|config| {
        config.webhook_internal = vec!["127.0.0.0/8".parse().unwrap()];
        config.webhook_retry = Duration::from_millis(20);
    })
    .await
}

#[tokio::test]
async fn webhooks_are_told_with_a_signature() {
    let fixture = fixture().await;
    let (listener, url) = listener().await;
    let made = fixture.control.events().create_webhook(fixture.team.id, webhook(url)).await.unwrap();
    let id = fixture.create().await.unwrap().info.id;
    // In between is an event that the webhook does not want.
    fixture.control.set_timeout(&fixture.team, &id, 60).await.unwrap();
    let (headers, body) = receive(&listener, "200 OK").await;
    assert_eq!(header(&headers, "e2b-webhook-id"), made.id.to_string());
    assert_eq!(header(&headers, "e2b-signature-version"), "v1");
    assert_eq!(header(&headers, "e2b-signature"), ::webhook::signature("s3cret", body.as_bytes()));
    let event: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(event["type"], "sandbox.lifecycle.created");
    assert_eq!((event["version"].as_str(), event["sandbox_id"].as_str()), (Some("v2"), Some(id.as_str())));
    assert_eq!(event["sandbox_team_id"], fixture.team.id.to_string());

    fixture.control.kill(fixture.team.id, &id).await.unwrap();
    let (again, body) = receive(&listener, "204 No Content").await;
    assert!(body.contains("sandbox.lifecycle.killed"), "{body}");
    assert_ne!(header(&headers, "e2b-delivery-id"), header(&again, "e2b-delivery-id"));
}

#[tokio::test]
async fn failed_deliveries_are_tried_again_across_a_restart_and_then_given_up() {
    let fixture = fixture().await;
    let (listener, url) = listener().await;
    let hook = fixture.control.events().create_webhook(fixture.team.id, webhook(url)).await.unwrap();
    fixture.create().await.unwrap();
    let (first, body) = receive(&listener, "500 Oops").await;
    let (second, same) = receive(&listener, "500 Oops").await;
    assert_eq!(body, same);
    assert_ne!(header(&first, "e2b-delivery-id"), header(&second, "e2b-delivery-id"));
    receive(&listener, "500 Oops").await;
    receive(&listener, "500 Oops").await;
    // The first delivery is given up, so the next one that arrives is of the next event.
    let store = &fixture.store;
    let id = fixture.create().await.unwrap().info.id;
    let (_, body) = receive(&listener, "500 Oops").await;
    assert!(body.contains(id.as_str()), "{body}");
    assert!(store.waiting_deliveries(hook.id).await.unwrap() >= 1);
    fixture.control.shutdown().await;
    let _again =
        fixture.reopen_with(|config| config.webhook_internal = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let (_, body) = receive(&listener, "200 OK").await;
    assert!(body.contains(id.as_str()), "told by the next server: {body}");
}

#[tokio::test]
async fn webhooks_are_checked_changed_and_deleted() {
    let fixture = Fixture::new().await;
    let (control, team) = (&fixture.control, fixture.team.id);
    let refused =
        async |new: NewWebhook| control.events().create_webhook(team, new).await.unwrap_err().to_string();
    let good = || webhook("https://example.com/hook".into());
    let inside = refused(webhook("http://169.254.169.254/".into())).await;
    assert!(inside.contains("--webhook-allow-internal"), "{inside}");
    assert!(refused(webhook("gopher://x".into())).await.starts_with("Invalid webhook URL: "));
    assert!(refused(NewWebhook { name: " ".into(), ..good() }).await.starts_with("name must be"));
    assert!(
        refused(NewWebhook { secret: String::new(), ..good() }).await.starts_with("signatureSecret must be")
    );
    assert_eq!(refused(NewWebhook { events: vec![], ..good() }).await, "events must name at least one event");

    let hook = control.events().create_webhook(team, good()).await.unwrap();
    let change = WebhookChange { enabled: Some(false), ..WebhookChange::default() };
    let changed = control.events().change_webhook(team, hook.id, change).await.unwrap();
    assert!(!changed.enabled && changed.url == hook.url);
    let change = WebhookChange { url: Some("http://10.0.0.1".into()), ..WebhookChange::default() };
    assert!(control.events().change_webhook(team, hook.id, change).await.is_err());
    assert_eq!(control.events().webhooks(team).len(), 1);
    let stranger = TeamId::generate();
    assert!(control.events().webhooks(stranger).is_empty());
    assert!(matches!(control.events().webhook(stranger, hook.id), Err(EventError::WebhookNotFound)));
    assert!(control.events().delete_webhook(stranger, hook.id).await.is_err());
    control.events().delete_webhook(team, hook.id).await.unwrap();
    assert!(control.events().webhooks(team).is_empty());
}

#[tokio::test]
async fn pauses_snapshots_forks_and_rollbacks_are_told() {
    use EventKind::{Checkpointed, Created, Killed, Paused, Resumed, Updated};
    let fixture = Fixture::new().await;
    let (control, team) = (&fixture.control, &fixture.team);
    let id = fixture.create().await.unwrap().info.id;
    let snapshot = control.snapshot(team, &id, None, true).await.unwrap();
    control.rollback(team, &id, &snapshot.id).await.unwrap();
    let fork = ForkRequest { timeout: 60, count: 1 };
    let forks = control.fork(team, &id, fork).await.unwrap();
    let forked = forks.into_iter().next().unwrap().unwrap().info.id;
    control.pause(team.id, &id, PauseRequest::default()).await.unwrap();
    control.connect(team, &id, 60, true).await.unwrap();
    control.pause(team.id, &id, PauseRequest::default()).await.unwrap();
    control.kill(team.id, &id).await.unwrap();

    let told = events(&fixture, &id).await;
    assert_eq!(kinds(&told), [Created, Checkpointed, Updated, Paused, Resumed, Paused, Killed]);
    assert_eq!(told[1].body.data["snapshot_id"], snapshot.id);
    assert!(told[2].body.data["rolled_back_to"].is_string());
    assert_eq!(told[3].body.data["memory"], true);
    assert!(told[3].body.data["execution"]["execution_time"].is_i64());
    let runs: Vec<_> = told.iter().map(|event| event.body.execution).collect();
    assert!(runs[0] == runs[1] && runs[1] != runs[2] && runs[2] == runs[3] && runs[3] != runs[4]);
    assert_eq!(runs[5], runs[6], "what was killed is the run that was paused");
    let forked = events(&fixture, &forked).await;
    assert_eq!(kinds(&forked), [Created]);
    assert_eq!(forked[0].body.data["source_sandbox_id"], id.as_str());
}

#[tokio::test]
async fn traffic_wakes_no_sandbox_of_a_blocked_team() {
    let fixture = Fixture::new().await;
    let lifecycle =
        Lifecycle { auto_pause: true, auto_resume: true, resume_timeout: 300, ..Lifecycle::default() };
    let id = fixture.create_with(|request| request.lifecycle = lifecycle).await.unwrap().info.id;
    fixture.control.pause(fixture.team.id, &id, PauseRequest::default()).await.unwrap();
    let standing = |standing| TeamChange { standing: Some(standing), ..TeamChange::default() };
    let blocked = standing(Standing::Blocked("unpaid".to_owned()));
    fixture.control.change_team(fixture.team.id, blocked).await.unwrap();
    let sleeping = || fixture.control.find_wakeable(&id).unwrap();
    assert!(matches!(fixture.control.wake(sleeping()).await, Err(ControlError::Forbidden(_))));
    fixture.control.change_team(fixture.team.id, standing(Standing::Good)).await.unwrap();
    fixture.control.wake(sleeping()).await.unwrap();
}
