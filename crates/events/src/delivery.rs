//! Deliveries to webhooks: one task per webhook, so that a slow receiver does not delay deliveries to other webhooks. Deliveries are in the store until
//! they arrive: a crash delays them, and at worst they arrive twice. Queues are limited: a receiver that is down for long misses
//! events, which can still be read by the API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ids::{DeliveryId, TeamId, WebhookId};
use parking_lot::RwLock;
use serde_json::json;
use store::{Delivery, Event, EventKind, Webhook};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use webhook::{DeliveryError, WebhookClient, WebhookPayload};

use super::{Events, event_label};

/// Maximum number of simultaneous deliveries to one webhook.
const MAX_PARALLEL: u32 = 8;
/// Maximum number of deliveries that wait for one webhook.
const MAX_WAITING: u64 = 10_000;
/// Number of attempts after the first, as at E2B.
const RETRIES: u32 = 3;
/// Pause after a failure of the store.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// A webhook and the number of its waiting deliveries.
#[derive(Debug)]
pub(crate) struct WebhookQueue {
    record: RwLock<Arc<Webhook>>,
    waiting: AtomicU64,
    wake: Notify,
    stop: CancellationToken,
}

impl WebhookQueue {
    pub(crate) fn record(&self) -> Arc<Webhook> {
        Arc::clone(&self.record.read())
    }

    pub(crate) fn replace(&self, record: Webhook) {
        *self.record.write() = Arc::new(record);
        self.wake.notify_one();
    }

    /// Returns a new delivery to this webhook.
    pub(crate) fn delivery(&self, due_at: OffsetDateTime) -> Delivery {
        Delivery { id: DeliveryId::generate(), webhook: self.record().id, attempts: 0, due_at }
    }

    /// Has the task look for due deliveries.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Subtracts deliveries that have left the queue from the number of waiting ones.
    pub(crate) fn remove_waiting(&self, count: u64) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }

    /// Returns whether the webhook is subscribed to events of this kind and its queue is not full. If so, reserves a place in the queue.
    fn accepts(&self, kind: EventKind) -> bool {
        let record = self.record();
        if !record.enabled || !record.events.contains(&kind) {
            return false;
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= MAX_WAITING {
            self.remove_waiting(1);
            tracing::warn!(webhook_id = %record.id, waiting = before, "a webhook's queue is full; it misses an event");
            return false;
        }
        true
    }
}

/// Returns the body of a delivery.
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

/// Returns body and headers of a delivery. Every attempt has an id of its own.
fn webhook_payload(webhook: &Webhook, event: &Event) -> WebhookPayload {
    let body = payload(event).to_string();
    let headers = [
        ("e2b-webhook-id", webhook.id.to_string()),
        ("e2b-delivery-id", DeliveryId::generate().to_string()),
        ("e2b-signature-version", "v1".to_owned()),
        ("e2b-signature", webhook::signature(&webhook.secret, body.as_bytes())),
    ];
    let header = |(name, value): (&'static str, String)| {
        let value = HeaderValue::from_str(&value).expect("ids and base64 are visible ASCII");
        (HeaderName::from_static(name), value)
    };
    WebhookPayload { body: body.into(), headers: headers.map(header).into() }
}

/// Result of one attempt.
enum Attempt {
    /// The delivery arrived or was given up.
    Done,
    /// The delivery is to be tried again.
    Postponed(Delivery),
}

impl Events {
    pub(crate) fn webhooks_of(&self, team: TeamId) -> Vec<Arc<WebhookQueue>> {
        self.webhooks.read().get(&team).cloned().unwrap_or_default()
    }

    /// Returns the team's webhooks that accept an event of this kind; each has a place taken in its queue.
    pub(crate) fn webhooks_wanting(&self, team: TeamId, kind: EventKind) -> Vec<Arc<WebhookQueue>> {
        let mut webhooks = self.webhooks_of(team);
        webhooks.retain(|webhook| webhook.accepts(kind));
        webhooks
    }

    /// Stops deliveries to a deleted webhook.
    pub(crate) fn stop_webhook(&self, team: TeamId, id: WebhookId) {
        let mut by_team = self.webhooks.write();
        let Some(webhooks) = by_team.get_mut(&team) else { return };
        webhooks.retain(|webhook| {
            let stays = webhook.record().id != id;
            if !stays {
                webhook.stop.cancel();
            }
            stays
        });
    }

    /// Starts the task that delivers to a webhook; `waiting` deliveries are in the store already.
    pub(crate) fn start_webhook(self: &Arc<Self>, record: Webhook, waiting: u64) {
        let team = record.team;
        let webhook = Arc::new(WebhookQueue {
            record: RwLock::new(Arc::new(record)),
            waiting: AtomicU64::new(waiting),
            wake: Notify::new(),
            stop: self.closing.child_token(),
        });
        self.webhooks.write().entry(team).or_default().push(Arc::clone(&webhook));
        let events = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = webhook.stop.cancelled() => {}
                () = events.deliver_to(&webhook) => {}
            }
        });
    }

    /// Delivers to a webhook, without end.
    async fn deliver_to(self: &Arc<Self>, webhook: &Arc<WebhookQueue>) {
        let id = webhook.record().id;
        loop {
            let next = self.store.next_deliveries(id, MAX_PARALLEL).await;
            let now = OffsetDateTime::now_utc();
            let pause = match &next {
                Err(error) => {
                    tracing::warn!(webhook_id = %id, %error, "failed to read deliveries");
                    Some(STORE_PAUSE)
                }
                Ok(next) => {
                    next.first().map(|(first, _)| Duration::try_from(first.due_at - now).unwrap_or_default())
                }
            };
            match (next, pause) {
                (Ok(next), Some(Duration::ZERO)) => {
                    let due = next.into_iter().filter(|(delivery, _)| delivery.due_at <= now).collect();
                    self.deliver_all(webhook, due).await;
                }
                (_, Some(pause)) => {
                    tokio::select! {
                        () = webhook.wake.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                (_, None) => webhook.wake.notified().await,
            }
        }
    }

    /// Attempts deliveries side by side and records their outcomes.
    async fn deliver_all(self: &Arc<Self>, webhook: &Arc<WebhookQueue>, due: Vec<(Delivery, Event)>) {
        let mut attempts = JoinSet::new();
        for (delivery, event) in due {
            let (events, webhook) = (Arc::clone(self), Arc::clone(webhook));
            attempts.spawn(async move { (delivery.id, events.attempt(&webhook, delivery, &event).await) });
        }
        let mut done = Vec::new();
        let mut recorded = Ok(());
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok((id, Attempt::Done)) => done.push(id),
                Ok((_, Attempt::Postponed(delivery))) => {
                    recorded = recorded.and(self.store.postpone_delivery(&delivery).await);
                }
                Err(error) => tracing::error!(%error, "a delivery's task ended abnormally"),
            }
        }
        if !done.is_empty() {
            recorded = recorded.and(self.store.delete_deliveries(&done).await);
            webhook.remove_waiting(done.len() as u64);
        }
        if let Err(error) = recorded {
            // The same deliveries are made again; without a pause that would go on and on.
            tracing::warn!(webhook_id = %webhook.record().id, %error, "failed to record the outcome of deliveries");
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }

    async fn attempt(&self, webhook: &WebhookQueue, mut delivery: Delivery, event: &Event) -> Attempt {
        let record = webhook.record();
        if !record.enabled {
            return Attempt::Done;
        }
        let Err(error) = self.deliver(&record, event).await else { return Attempt::Done };
        delivery.attempts += 1;
        if delivery.attempts > RETRIES {
            tracing::warn!(webhook_id = %record.id, event_id = %event.id, %error, "giving up a delivery");
            return Attempt::Done;
        }
        tracing::debug!(webhook_id = %record.id, event_id = %event.id, %error, "a delivery failed and is tried again");
        let wait = self.config.retry * 2u32.pow(delivery.attempts - 1);
        delivery.due_at = OffsetDateTime::now_utc() + wait;
        Attempt::Postponed(delivery)
    }

    async fn deliver(&self, record: &Webhook, event: &Event) -> Result<(), DeliveryError> {
        let new_client = || WebhookClient::new(self.config.allowed_networks.clone(), self.config.timeout);
        let client = self.client.get_or_init(new_client);
        let target = client.check(&record.url)?;
        client.deliver(&target, webhook_payload(record, event)).await.map(drop)
    }
}
