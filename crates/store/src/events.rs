//! What happened to sandboxes, the webhooks that want to know, and deliveries on their way.
//! An event and its deliveries are written together or not at all.
//! Writing an event that is there already changes nothing: it may be tried again after a crash.

use async_trait::async_trait;
use ids::{BuildId, DeliveryId, EventId, ExecutionId, SandboxId, TeamId, TemplateId, WebhookId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::StoreError;

/// What can happen to a sandbox. Names on the wire: `sandbox.lifecycle.*`.
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
    /// Captured while it ran on.
    Checkpointed,
    /// Over for good.
    Killed,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Updated, Self::Paused, Self::Resumed, Self::Checkpointed, Self::Killed];

    /// As on the wire and in the database.
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

    /// By its name on the wire.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// Whose sandbox it was.
    pub team: TeamId,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What.
    pub kind: EventKind,
    /// When.
    pub at: OffsetDateTime,
    /// The rest.
    pub body: EventBody,
}

/// What is only carried along with an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventBody {
    /// The template the sandbox came from.
    pub template: TemplateId,
    /// The build of it.
    pub build: BuildId,
    /// The run it happened to.
    pub execution: ExecutionId,
    /// Particulars, by names of the wire contract.
    pub data: Map<String, Value>,
}

/// Which events are wanted.
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
    /// How many to leave out at the begin.
    pub offset: u32,
    /// Most to answer.
    pub limit: u32,
}

/// Somebody who wants to be told of events.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is.
    pub team: TeamId,
    /// Its name for people.
    pub name: String,
    /// Where to post to.
    pub url: String,
    /// Whether anything is posted.
    pub enabled: bool,
    /// What to tell.
    pub events: Vec<EventKind>,
    /// What deliveries are signed with. Never shown.
    pub secret: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).field("url", &self.url).finish_non_exhaustive()
    }
}

/// An event on its way to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The record's id.
    pub id: DeliveryId,
    /// To whom.
    pub webhook: WebhookId,
    /// Failed attempts so far.
    pub attempts: u32,
    /// When to try next.
    pub due_at: OffsetDateTime,
}

/// The part of a store that holds events and webhooks.
#[async_trait]
pub trait EventStore: Send + Sync + 'static {
    /// Adds an event with its deliveries; false, and nothing is changed, when it is there already.
    async fn insert_event(&self, event: &Event, deliveries: &[Delivery]) -> Result<bool, StoreError>;
    /// The wanted events.
    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError>;
    /// Forgets events older than this, and deliveries of them; returns how many.
    async fn prune_events(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Adds a webhook, or replaces the one with its id.
    async fn put_webhook(&self, webhook: &Webhook) -> Result<(), StoreError>;
    /// All webhooks, oldest first.
    async fn webhooks(&self) -> Result<Vec<Webhook>, StoreError>;
    /// Removes a team's webhook with its deliveries; false when there is no such webhook.
    async fn delete_webhook(&self, team: TeamId, id: WebhookId) -> Result<bool, StoreError>;

    /// How many deliveries wait for a webhook.
    async fn waiting_deliveries(&self, webhook: WebhookId) -> Result<u64, StoreError>;
    /// The deliveries to a webhook that come first, soonest first, each with its event.
    async fn next_deliveries(
        &self,
        webhook: WebhookId,
        limit: u32,
    ) -> Result<Vec<(Delivery, Event)>, StoreError>;
    /// Notes a failed attempt.
    async fn postpone_delivery(&self, delivery: &Delivery) -> Result<(), StoreError>;
    /// Removes deliveries that arrived or were given up.
    async fn delete_deliveries(&self, ids: &[DeliveryId]) -> Result<(), StoreError>;
}
