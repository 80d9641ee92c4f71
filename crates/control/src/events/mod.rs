//! What happened to sandboxes: written to the store before the action is acknowledged, and kept for days.
//! Failing to write one never fails the action itself: the sandbox matters more than the note about it.
//! Names and particulars are upstream's (`sandbox.lifecycle.*`, payload version 2).

mod hooks;
mod webhooks;

use std::collections::BTreeMap;

use ids::{BuildId, EventId, ExecutionId, SandboxId, TeamId, TemplateId};
use serde_json::{Map, Value, json};
use store::{Delivery, Event, EventBody, EventKind, EventQuery, Sandbox, truncate_to_micros};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::sandboxes::running::{EndReason, Live};
use crate::{Control, ControlError};

pub(crate) use hooks::Hooks;
pub use webhooks::{NewWebhook, WebhookChange};

/// Most events in one answer.
pub const MAX_EVENTS: u32 = 100;

/// The sandbox an event is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    id: SandboxId,
    team: TeamId,
    template: TemplateId,
    build: BuildId,
    execution: ExecutionId,
    started_at: OffsetDateTime,
    /// Since when it has not been running.
    stopped_at: Option<OffsetDateTime>,
    metadata: BTreeMap<String, String>,
    cpu_count: u32,
    memory_mib: u32,
}

impl From<&Live> for Subject {
    fn from(live: &Live) -> Self {
        let details = live.details();
        Self {
            id: live.id.clone(),
            team: live.team,
            template: live.template.clone(),
            build: live.build,
            execution: live.execution,
            started_at: live.started_at,
            stopped_at: None,
            metadata: details.metadata,
            cpu_count: details.cpu_count,
            memory_mib: details.memory_mib,
        }
    }
}

impl From<&Sandbox> for Subject {
    fn from(record: &Sandbox) -> Self {
        Self {
            id: record.id.clone(),
            team: record.team,
            template: record.template.clone(),
            build: record.build,
            execution: record.execution,
            started_at: record.started_at,
            stopped_at: record.pause.as_ref().map(|pause| pause.at),
            metadata: record.details.metadata.clone(),
            cpu_count: record.details.cpu_count,
            memory_mib: record.details.memory_mib,
        }
    }
}

/// The older, two-part name of a kind has this as its second part.
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

/// Why a sandbox ended, by upstream's names where it has one.
fn kill_reason(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::Lost => "orphaned",
        other => other.as_str(),
    }
}

fn text(at: OffsetDateTime) -> Value {
    at.format(&Rfc3339).map_or(Value::Null, Value::String)
}

impl Control {
    /// Notes what happened to a sandbox, and tells whoever wants to know. Await it before the action is acknowledged:
    /// from then on a crash of the server does not lose it. `particulars` go into the event's data beside the
    /// sandbox's metadata; an end's or a pause's account of the run is added here.
    pub(crate) async fn record_event(
        &self,
        kind: EventKind,
        about: impl Into<Subject>,
        particulars: Map<String, Value>,
    ) {
        let about = about.into();
        let at = truncate_to_micros(OffsetDateTime::now_utc());
        let mut data = Map::new();
        data.insert("sandbox_metadata".to_owned(), json!(about.metadata));
        if matches!(kind, EventKind::Paused | EventKind::Killed) {
            let ran = (about.stopped_at.unwrap_or(at) - about.started_at).whole_milliseconds();
            let execution = json!({
                "started_at": text(about.started_at),
                "vcpu_count": about.cpu_count,
                "memory_mb": about.memory_mib,
                "execution_time": i64::try_from(ran).unwrap_or(0).max(0),
            });
            data.insert("execution".to_owned(), execution);
        }
        data.extend(particulars);
        let event = Event {
            // A run ends once, however often a crash makes us say so.
            id: if kind == EventKind::Killed {
                EventId::of_end(about.execution)
            } else {
                EventId::in_order()
            },
            team: about.team,
            sandbox: about.id,
            kind,
            at,
            body: EventBody {
                template: about.template,
                build: about.build,
                execution: about.execution,
                data,
            },
        };
        let hooks = self.hooks.wanting(event.team, kind);
        let deliveries: Vec<Delivery> = hooks.iter().map(|hook| hook.delivery(at)).collect();
        match self.store.insert_event(&event, &deliveries).await {
            Ok(true) => hooks.iter().for_each(|hook| hook.wake()),
            Ok(false) => hooks.iter().for_each(|hook| hook.forget(1)),
            Err(error) => {
                hooks.iter().for_each(|hook| hook.forget(1));
                tracing::error!(sandbox_id = %event.sandbox, kind = kind.as_str(), %error, "an event was not recorded");
            }
        }
    }

    /// A sandbox was started.
    pub(crate) async fn record_created(&self, live: &Live) {
        self.record_event(EventKind::Created, live, Map::new()).await;
    }

    /// A sandbox was started from the memory of another.
    pub(crate) async fn record_forked(&self, live: &Live, source: &SandboxId) {
        let particulars = [("source_sandbox_id".to_owned(), json!(source))];
        self.record_event(EventKind::Created, live, particulars.into_iter().collect()).await;
    }

    /// A sandbox's end was moved.
    pub(crate) async fn record_new_end(&self, live: &Live) {
        let particulars = [("set_timeout".to_owned(), text(live.end_at()))];
        self.record_event(EventKind::Updated, live, particulars.into_iter().collect()).await;
    }

    /// A sandbox's rules for outgoing traffic were replaced.
    pub(crate) async fn record_network(&self, live: &Live) {
        let details = live.details();
        let network = details.network.unwrap_or_default();
        let mut egress = Map::new();
        if let Some(allowed) = network.allow_out {
            egress.insert("allow_out".to_owned(), json!(allowed));
        }
        if let Some(denied) = network.deny_out {
            egress.insert("deny_out".to_owned(), json!(denied));
        }
        if let Some(allowed) = details.allow_internet_access {
            egress.insert("allow_internet_access".to_owned(), json!(allowed));
        }
        let particulars = [("network_egress".to_owned(), Value::Object(egress))];
        self.record_event(EventKind::Updated, live, particulars.into_iter().collect()).await;
    }

    /// A sandbox is over. Before its record says so: a crash in between has the next server say it again.
    pub(crate) async fn record_killed(&self, about: impl Into<Subject>, reason: &EndReason) {
        let particulars = [("kill_reason".to_owned(), json!(kill_reason(reason)))];
        self.record_event(EventKind::Killed, about, particulars.into_iter().collect()).await;
    }

    /// The same of a sandbox that only the store knows.
    pub(crate) async fn record_killed_by_id(&self, id: &SandboxId, reason: &EndReason) {
        match self.store.sandbox(id).await {
            Ok(Some(record)) => self.record_killed(&record, reason).await,
            Ok(None) => {}
            Err(error) => tracing::error!(sandbox_id = %id, %error, "an event was not recorded"),
        }
    }

    /// What happened to a team's sandboxes.
    ///
    /// # Errors
    /// The limit is out of range, or the store failed.
    pub async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, ControlError> {
        if !(1..=MAX_EVENTS).contains(&query.limit) {
            return Err(ControlError::Invalid(format!("limit must be from 1 to {MAX_EVENTS}")));
        }
        Ok(self.store.events(query).await?)
    }

    /// Drops events that are older than what is kept.
    pub(crate) async fn forget_events(&self, before: OffsetDateTime) {
        match self.store.prune_events(before).await {
            Ok(0) => {}
            Ok(pruned) => tracing::debug!(pruned, "forgot events"),
            Err(error) => tracing::warn!(%error, "old events could not be removed"),
        }
    }
}
