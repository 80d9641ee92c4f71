//! Events of sandboxes, webhooks that subscribe to them, and pending deliveries of events to webhooks.
//! An event and its deliveries are written in one transaction. Writing an event that exists already changes nothing, so that it may
//! be repeated after a crash.

use async_trait::async_trait;
use ids::{BuildId, DeliveryId, EventId, ExecutionId, SandboxId, TeamId, TemplateId, WebhookId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::StoreError;

/// Kinds of events. Names on the wire: `sandbox.lifecycle.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// Started from a template.
    Created,
    /// Time limit or network rules changed.
    Updated,
    /// Captured and stopped.
    Paused,
    /// Running again.
    Resumed,
    /// Captured while it continued to run.
    Checkpointed,
    /// Ended.
    Killed,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Updated, Self::Paused, Self::Resumed, Self::Checkpointed, Self::Killed];

    /// Returns the kind's name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "sandbox.lifecycle.created",
            Self::Updated => "sandbox.lifecycle.updated",
            Self::Paused => "sandbox.lifecycle.paused",
            Self::Resumed => "sandbox.lifecycle.resumed",
            Self::Checkpointed => "sandbox.lifecycle.checkpointed",
            Self::Killed => "sandbox.lifecycle.killed",
        }
    }

    /// Returns the kind with this name on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An event of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// The team that owns the sandbox.
    pub team: TeamId,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What happened.
    pub kind: EventKind,
    /// When it happened.
    pub at: OffsetDateTime,
    /// Fields that no query needs.
    pub body: EventBody,
}

/// Fields of an event that no query needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventBody {
    /// The sandbox's template.
    pub template: TemplateId,
    /// The build of the template.
    pub build: BuildId,
    /// The sandbox's execution.
    pub execution: ExecutionId,
    /// Details, with the names of the wire contract.
    pub data: Map<String, Value>,
}

/// A query for events.
#[derive(Debug, Clone)]
pub struct EventQuery {
    /// Of this team.
    pub team: TeamId,
    /// Only of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only these kinds; empty is all.
    pub kinds: Vec<EventKind>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Number of events to skip at the beginning.
    pub offset: u32,
    /// Maximum number of events to return.
    pub limit: u32,
}

/// A subscription of a URL to events.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its name for people.
    pub name: String,
    /// The URL that events are posted to.
    pub url: String,
    /// Whether events are posted.
    pub enabled: bool,
    /// The kinds of events that are posted.
    pub events: Vec<EventKind>,
    /// The secret that deliveries are signed with. Never shown.
    pub secret: String,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).field("url", &self.url).finish_non_exhaustive()
    }
}

/// A pending delivery of an event to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The record's id.
    pub id: DeliveryId,
    /// The webhook.
    pub webhook: WebhookId,
    /// Number of failed attempts so far.
    pub attempts: u32,
    /// When the next attempt is due.
    pub due_at: OffsetDateTime,
}

/// The part of a store with events and webhooks.
#[async_trait]
pub trait EventStore: Send + Sync + 'static {
    /// Adds an event with its deliveries; returns false and changes nothing if the event exists already.
    async fn insert_event(&self, event: &Event, deliveries: &[Delivery]) -> Result<bool, StoreError>;
    /// Returns the events that match the query.
    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError>;
    /// Removes events older than this and their deliveries; returns the number of removed events.
    async fn prune_events(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Adds a webhook, or replaces the one with its id.
    async fn put_webhook(&self, webhook: &Webhook) -> Result<(), StoreError>;
    /// Returns all webhooks, oldest first.
    async fn webhooks(&self) -> Result<Vec<Webhook>, StoreError>;
    /// Removes a team's webhook with its deliveries; returns false if there is no such webhook.
    async fn delete_webhook(&self, team: TeamId, id: WebhookId) -> Result<bool, StoreError>;

    /// Returns the number of pending deliveries to a webhook.
    async fn waiting_deliveries(&self, webhook: WebhookId) -> Result<u64, StoreError>;
    /// Returns the next deliveries to a webhook, in the order in which they are due, each with its event.
    async fn next_deliveries(
        &self,
        webhook: WebhookId,
        limit: u32,
    ) -> Result<Vec<(Delivery, Event)>, StoreError>;
    /// Records a failed attempt.
    async fn postpone_delivery(&self, delivery: &Delivery) -> Result<(), StoreError>;
    /// Removes deliveries that succeeded or were given up.
    async fn delete_deliveries(&self, ids: &[DeliveryId]) -> Result<(), StoreError>;
}
