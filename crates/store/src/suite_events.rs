//! The part of the behaviour suite about events, webhooks and deliveries. Each case gets a store of its own.

use ids::{BuildId, DeliveryId, EventId, ExecutionId, SandboxId, TeamId, TemplateId, WebhookId};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::{
    Delivery, Event, EventBody, EventKind, EventQuery, Standing, Store, StoreError, Team, TeamLimits,
    Webhook, truncate_to_micros,
};

fn now() -> OffsetDateTime {
    truncate_to_micros(OffsetDateTime::now_utc())
}

fn event(team: TeamId, sandbox: &SandboxId, kind: EventKind, at: OffsetDateTime) -> Event {
    let data = json!({"sandbox_metadata": {"ä": "=&"}});
    Event {
        id: EventId::generate(),
        team,
        sandbox: sandbox.clone(),
        kind,
        at,
        body: EventBody {
            template: TemplateId::generate(),
            build: BuildId::generate(),
            execution: ExecutionId::generate(),
            data: data.as_object().cloned().unwrap_or_default(),
        },
    }
}

fn query(team: TeamId) -> EventQuery {
    EventQuery { team, sandbox: None, kinds: Vec::new(), ascending: false, offset: 0, limit: 100 }
}

async fn owner(store: &impl Store) -> Result<TeamId, StoreError> {
    let team = Team {
        id: TeamId::generate(),
        name: "Owner".to_owned(),
        slug: "owner".to_owned(),
        limits: TeamLimits::default(),
        egress: Default::default(),
        standing: Standing::Good,
        created_at: now(),
    };
    store.put_team(&team).await?;
    Ok(team.id)
}

fn webhook(team: TeamId) -> Webhook {
    Webhook {
        id: WebhookId::generate(),
        team,
        name: "hook".to_owned(),
        url: "https://example.com".to_owned(),
        enabled: true,
        events: vec![EventKind::Created, EventKind::Killed],
        secret: "s".to_owned(),
        created_at: now(),
    }
}

fn delivery(webhook: &Webhook, due_at: OffsetDateTime) -> Delivery {
    Delivery { id: DeliveryId::generate(), webhook: webhook.id, attempts: 0, due_at }
}

pub(crate) async fn events_are_found_filtered_paged_and_pruned(store: &impl Store) -> Result<(), StoreError> {
    let (team, one, two) = (TeamId::generate(), SandboxId::generate(), SandboxId::generate());
    let start = now();
    let created = event(team, &one, EventKind::Created, start);
    let other = event(team, &two, EventKind::Created, start + Duration::microseconds(1));
    let killed = event(team, &one, EventKind::Killed, start + Duration::seconds(1));
    for event in [&created, &other, &killed] {
        assert!(store.insert_event(event, &[]).await?);
    }
    assert!(!store.insert_event(&killed, &[]).await?, "the same again is nothing new");
    store.insert_event(&event(TeamId::generate(), &one, EventKind::Created, start), &[]).await?;

    assert_eq!(store.events(&query(team)).await?, [killed.clone(), other.clone(), created.clone()]);
    let ascending = EventQuery { ascending: true, offset: 1, limit: 1, ..query(team) };
    assert_eq!(store.events(&ascending).await?, std::slice::from_ref(&other));
    let of_one = EventQuery { sandbox: Some(one.clone()), ..query(team) };
    assert_eq!(store.events(&of_one).await?, [killed.clone(), created]);
    let kinds = EventQuery { kinds: vec![EventKind::Killed, EventKind::Paused], ..query(team) };
    assert_eq!(store.events(&kinds).await?, std::slice::from_ref(&killed));

    assert_eq!(store.prune_events(start + Duration::milliseconds(1)).await?, 3);
    assert_eq!(store.events(&query(team)).await?, [killed]);
    Ok(())
}

pub(crate) async fn webhooks_are_replaced_and_deleted(store: &impl Store) -> Result<(), StoreError> {
    let team = owner(store).await?;
    let mut hook = webhook(team);
    store.put_webhook(&hook).await?;
    (hook.url, hook.enabled, hook.events) = ("http://example.org".into(), false, vec![EventKind::Paused]);
    store.put_webhook(&hook).await?;
    assert_eq!(store.webhooks().await?, [hook.clone()]);
    assert!(!format!("{hook:?}").contains("secret"));
    assert!(!store.delete_webhook(TeamId::generate(), hook.id).await?, "another team's");
    assert!(store.delete_webhook(team, hook.id).await?);
    assert!(!store.delete_webhook(team, hook.id).await?);
    Ok(())
}

pub(crate) async fn deliveries_wait_are_postponed_and_go(store: &impl Store) -> Result<(), StoreError> {
    let team = owner(store).await?;
    let hook = webhook(team);
    store.put_webhook(&hook).await?;
    let (first, second) = (
        event(team, &SandboxId::generate(), EventKind::Created, now()),
        event(team, &SandboxId::generate(), EventKind::Killed, now()),
    );
    let mut sooner = delivery(&hook, now());
    let later = delivery(&hook, now() + Duration::seconds(1));
    assert!(store.insert_event(&second, std::slice::from_ref(&later)).await?);
    assert!(store.insert_event(&first, std::slice::from_ref(&sooner)).await?);
    assert!(!store.insert_event(&first, &[delivery(&hook, now())]).await?);
    assert_eq!(store.waiting_deliveries(hook.id).await?, 2, "what is told again is not delivered again");
    let next = store.next_deliveries(hook.id, 10).await?;
    assert_eq!(next, [(sooner.clone(), first.clone()), (later.clone(), second.clone())]);

    (sooner.attempts, sooner.due_at) = (1, now() + Duration::hours(1));
    store.postpone_delivery(&sooner).await?;
    assert_eq!(store.next_deliveries(hook.id, 1).await?, [(later.clone(), second)]);
    store.delete_deliveries(&[later.id]).await?;
    assert_eq!(store.next_deliveries(hook.id, 10).await?, [(sooner, first)]);
    store.delete_webhook(team, hook.id).await?;
    assert_eq!(store.waiting_deliveries(hook.id).await?, 0);
    Ok(())
}
