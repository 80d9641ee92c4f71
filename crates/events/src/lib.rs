//! [`Events`]: what happened to sandboxes, and the webhooks that are told. An event is written to the store before the action is
//! acknowledged, together with its deliveries, and kept for days. A failure to write one never fails the action itself.
//! Names and data are E2B's (`sandbox.lifecycle.*`, payload version 2).
#![forbid(unsafe_code)]

mod delivery;
mod record;
mod webhooks;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ids::TeamId;
use net::Cidr;
use parking_lot::RwLock;
use store::{Event, EventKind, EventQuery, Store, StoreError};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use webhook::WebhookClient;

use delivery::WebhookQueue;

pub use record::Subject;
pub use webhooks::{NewWebhook, WebhookChange};

/// Maximum number of events per response.
pub const MAX_EVENTS: u32 = 100;

/// Why a call about events or webhooks is refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// A value is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// The team has no such webhook.
    #[error("Webhook not found")]
    WebhookNotFound,
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}

/// Settings of deliveries to webhooks.
#[derive(Debug, Clone)]
pub struct WebhooksConfig {
    /// Private networks that webhooks may reach nevertheless.
    pub allowed_networks: Vec<Cidr>,
    /// Maximum time that a receiver has to answer.
    pub timeout: Duration,
    /// Time from a failed delivery to the next attempt; it doubles each time.
    pub retry: Duration,
}

/// Records events and delivers them.
pub struct Events {
    store: Arc<dyn Store>,
    config: WebhooksConfig,
    webhooks: RwLock<HashMap<TeamId, Vec<Arc<WebhookQueue>>>>,
    /// Held while a webhook is changed, from the look-up to the write.
    changing: tokio::sync::Mutex<()>,
    /// Created when it is first needed, since reading certificates takes time.
    client: OnceLock<WebhookClient>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Events {
    /// Opens the events: deliveries that an earlier server process left are continued. Tasks are spawned on `tasks` and end when
    /// `closing` is cancelled.
    ///
    /// # Errors
    /// The store failed.
    pub async fn open(
        store: Arc<dyn Store>,
        config: WebhooksConfig,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let events = Arc::new(Self {
            store,
            config,
            webhooks: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            client: OnceLock::new(),
            tasks,
            closing,
        });
        for record in events.store.webhooks().await? {
            let waiting = events.store.waiting_deliveries(record.id).await?;
            events.start_webhook(record, waiting);
        }
        Ok(events)
    }

    /// Returns the events that match a query.
    ///
    /// # Errors
    /// The limit is out of range, or the store failed.
    pub async fn list(&self, query: &EventQuery) -> Result<Vec<Event>, EventError> {
        if !(1..=MAX_EVENTS).contains(&query.limit) {
            return Err(EventError::Invalid(format!("limit must be from 1 to {MAX_EVENTS}")));
        }
        Ok(self.store.events(query).await?)
    }

    /// Removes events that happened before a time.
    pub async fn forget(&self, before: OffsetDateTime) {
        match self.store.prune_events(before).await {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "removed old events"),
            Err(error) => tracing::warn!(%error, "failed to remove old events"),
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Returns the second part of a kind's older, two-part name.
#[must_use]
pub fn event_label(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Created => "create",
        EventKind::Updated => "update",
        EventKind::Paused => "pause",
        EventKind::Resumed => "resume",
        EventKind::Checkpointed => "checkpoint",
        EventKind::Killed => "kill",
    }
}
