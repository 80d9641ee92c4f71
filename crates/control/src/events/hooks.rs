//! Deliveries to webhooks: one worker a webhook, so that a slow receiver delays nobody else's.
//! What is to be delivered waits in the store: a crash delays it, and at worst it arrives twice.
//! Queues are bounded: a receiver that is down for long misses events, which can still be read by the API.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ids::{DeliveryId, TeamId, WebhookId};
use net::Cidr;
use serde_json::json;
use store::{Delivery, Event, EventKind, StoreError, Webhook};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use webhook::{Courier, DeliveryError, Letter};

use super::event_label;
use crate::Control;

/// Deliveries to one webhook at the same time.
const AT_ONCE: u32 = 8;
/// Deliveries that wait for one webhook, at most.
const MAX_WAITING: u64 = 10_000;
/// Attempts after the first: as many as upstream makes.
const RETRIES: u32 = 3;
/// After a failure of the store.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// A webhook at work.
#[derive(Debug)]
pub(crate) struct Hook {
    record: RwLock<Arc<Webhook>>,
    waiting: AtomicU64,
    wake: Notify,
    stop: CancellationToken,
}

impl Hook {
    pub(super) fn record(&self) -> Arc<Webhook> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, record: Webhook) {
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
        self.wake.notify_one();
    }

    /// A delivery to it, due at once.
    pub(super) fn delivery(&self, due_at: OffsetDateTime) -> Delivery {
        Delivery { id: DeliveryId::generate(), webhook: self.record().id, attempts: 0, due_at }
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn forget(&self, count: u64) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}

/// All webhooks.
#[derive(Debug)]
pub(crate) struct Hooks {
    by_team: RwLock<HashMap<TeamId, Vec<Arc<Hook>>>>,
    pub(super) allowed: Vec<Cidr>,
    patience: Duration,
    /// Made when it is first needed: reading certificates takes its time.
    courier: OnceLock<Courier>,
}

impl Hooks {
    pub(crate) fn new(allowed: Vec<Cidr>, patience: Duration) -> Self {
        Self { by_team: RwLock::default(), allowed, patience, courier: OnceLock::new() }
    }

    /// The team's webhooks that want to hear of this and have room; each has a place taken in its queue.
    pub(super) fn wanting(&self, team: TeamId, kind: EventKind) -> Vec<Arc<Hook>> {
        let mut hooks = self.of_team(team);
        hooks.retain(|hook| {
            let record = hook.record();
            if !record.enabled || !record.events.contains(&kind) {
                return false;
            }
            let before = hook.waiting.fetch_add(1, Ordering::Relaxed);
            if before >= MAX_WAITING {
                hook.forget(1);
                tracing::warn!(webhook_id = %record.id, waiting = before, "a webhook's queue is full: it misses an event");
                return false;
            }
            true
        });
        hooks
    }

    pub(super) fn of_team(&self, team: TeamId) -> Vec<Arc<Hook>> {
        let by_team = self.by_team.read().unwrap_or_else(PoisonError::into_inner);
        by_team.get(&team).cloned().unwrap_or_default()
    }

    pub(super) fn remove(&self, team: TeamId, id: WebhookId) {
        let mut by_team = self.by_team.write().unwrap_or_else(PoisonError::into_inner);
        let Some(hooks) = by_team.get_mut(&team) else { return };
        hooks.retain(|hook| {
            let stays = hook.record().id != id;
            if !stays {
                hook.stop.cancel();
            }
            stays
        });
    }
}

/// The body of a delivery.
fn payload(event: &Event) -> serde_json::Value {
    json!({
        "id": event.id,
        "version": "v2",
        "type": event.kind.as_str(),
        "timestamp": event.at.format(&Rfc3339).unwrap_or_default(),
        "event_category": "lifecycle",
        "event_label": event_label(event.kind),
        "event_data": event.body.data,
        "sandbox_id": event.sandbox,
        "sandbox_execution_id": event.body.execution,
        "sandbox_template_id": event.body.template,
        "sandbox_build_id": event.body.build,
        "sandbox_team_id": event.team,
    })
}

fn letter(hook: &Webhook, event: &Event) -> Letter {
    let body = payload(event).to_string();
    // Every attempt has an id of its own.
    let headers = [
        ("e2b-webhook-id", hook.id.to_string()),
        ("e2b-delivery-id", DeliveryId::generate().to_string()),
        ("e2b-signature-version", "v1".to_owned()),
        ("e2b-signature", webhook::signature(&hook.secret, body.as_bytes())),
    ];
    let header = |(name, value): (&'static str, String)| {
        let value = HeaderValue::from_str(&value).expect("ids and base64 are visible ASCII");
        (HeaderName::from_static(name), value)
    };
    Letter { body: body.into(), headers: headers.map(header).into() }
}

/// What became of an attempt.
enum Outcome {
    /// It arrived, or is given up.
    Done,
    /// To be tried again.
    Postponed(Delivery),
}

impl Control {
    /// Takes up the webhooks of an earlier run.
    pub(crate) async fn load_webhooks(self: &Arc<Self>) -> Result<(), StoreError> {
        for record in self.store.webhooks().await? {
            let waiting = self.store.waiting_deliveries(record.id).await?;
            self.start_hook(record, waiting);
        }
        Ok(())
    }

    pub(super) fn start_hook(self: &Arc<Self>, record: Webhook, waiting: u64) {
        let hook = Arc::new(Hook {
            record: RwLock::new(Arc::new(record)),
            waiting: AtomicU64::new(waiting),
            wake: Notify::new(),
            stop: self.closing.child_token(),
        });
        let team = hook.record().team;
        let mut by_team = self.hooks.by_team.write().unwrap_or_else(PoisonError::into_inner);
        by_team.entry(team).or_default().push(Arc::clone(&hook));
        let control = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = hook.stop.cancelled() => {}
                () = control.serve_hook(&hook) => {}
            }
        });
    }

    /// Delivers to a webhook, for ever.
    async fn serve_hook(self: &Arc<Self>, hook: &Arc<Hook>) {
        let id = hook.record().id;
        loop {
            let next = self.store.next_deliveries(id, AT_ONCE).await;
            let now = OffsetDateTime::now_utc();
            let pause = match &next {
                Err(error) => {
                    tracing::warn!(webhook_id = %id, %error, "deliveries could not be read");
                    Some(STORE_PAUSE)
                }
                Ok(next) => {
                    next.first().map(|(first, _)| Duration::try_from(first.due_at - now).unwrap_or_default())
                }
            };
            match (next, pause) {
                (Ok(next), Some(Duration::ZERO)) => {
                    let due = next.into_iter().filter(|(delivery, _)| delivery.due_at <= now).collect();
                    self.deliver_all(hook, due).await;
                }
                (_, Some(pause)) => {
                    tokio::select! {
                        () = hook.wake.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                (_, None) => hook.wake.notified().await,
            }
        }
    }

    async fn deliver_all(self: &Arc<Self>, hook: &Arc<Hook>, due: Vec<(Delivery, Event)>) {
        let mut attempts = JoinSet::new();
        for (delivery, event) in due {
            let (control, hook) = (Arc::clone(self), Arc::clone(hook));
            attempts.spawn(async move { (delivery.id, control.attempt(&hook, delivery, &event).await) });
        }
        let mut done = Vec::new();
        let mut result = Ok(());
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok((id, Outcome::Done)) => done.push(id),
                Ok((_, Outcome::Postponed(delivery))) => {
                    result = result.and(self.store.postpone_delivery(&delivery).await);
                }
                Err(error) => tracing::error!(%error, "a delivery's task ended abnormally"),
            }
        }
        if !done.is_empty() {
            result = result.and(self.store.delete_deliveries(&done).await);
            hook.forget(done.len() as u64);
        }
        if let Err(error) = result {
            // They are made again; without a pause that would go round and round.
            tracing::warn!(%error, "the outcome of deliveries was not recorded");
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }

    async fn attempt(&self, hook: &Hook, mut delivery: Delivery, event: &Event) -> Outcome {
        let record = hook.record();
        if !record.enabled {
            return Outcome::Done;
        }
        let Err(error) = self.deliver(&record, event).await else { return Outcome::Done };
        delivery.attempts += 1;
        if delivery.attempts > RETRIES {
            tracing::warn!(webhook_id = %record.id, event_id = %event.id, %error, "a delivery is given up");
            return Outcome::Done;
        }
        tracing::debug!(webhook_id = %record.id, event_id = %event.id, %error, "a delivery is tried again later");
        let wait = self.config.webhook_retry * 2u32.pow(delivery.attempts - 1);
        delivery.due_at = OffsetDateTime::now_utc() + wait;
        Outcome::Postponed(delivery)
    }

    async fn deliver(&self, record: &Webhook, event: &Event) -> Result<(), DeliveryError> {
        let hooks = &self.hooks;
        let courier = hooks.courier.get_or_init(|| Courier::new(hooks.allowed.clone(), hooks.patience));
        let target = courier.check(&record.url)?;
        courier.deliver(&target, letter(record, event)).await.map(drop)
    }
}
