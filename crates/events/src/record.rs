//! Records events. Every method is to be awaited before the action is acknowledged: from then on a crash does not lose the event.

use std::collections::BTreeMap;

use ids::{BuildId, EventId, ExecutionId, SandboxId, TeamId, TemplateId};
use serde_json::{Map, Value, json};
use store::{Delivery, Event, EventBody, EventKind, Sandbox, SandboxDetails, truncate_to_micros};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Events;

/// The sandbox that an event is about.
#[derive(Debug, Clone)]
pub struct Subject {
    id: SandboxId,
    team: TeamId,
    template: TemplateId,
    build: BuildId,
    execution: ExecutionId,
    started_at: OffsetDateTime,
    /// When it was paused.
    stopped_at: Option<OffsetDateTime>,
    metadata: BTreeMap<String, String>,
    cpu_count: u32,
    memory_mib: u32,
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

fn rfc3339(at: OffsetDateTime) -> Value {
    at.format(&Rfc3339).map_or(Value::Null, Value::String)
}

fn one_field(name: &str, value: Value) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), value)])
}

impl Events {
    /// Records an event and queues its deliveries. `data` is added to the event's data beside the sandbox's metadata; ends and
    /// pauses also get how long the run was.
    pub async fn record(&self, kind: EventKind, about: impl Into<Subject>, data: Map<String, Value>) {
        let event = event_of(kind, about.into(), data);
        let webhooks = self.webhooks_wanting(event.team, kind);
        let deliveries: Vec<Delivery> = webhooks.iter().map(|webhook| webhook.delivery(event.at)).collect();
        match self.store.insert_event(&event, &deliveries).await {
            Ok(true) => webhooks.iter().for_each(|webhook| webhook.wake()),
            // An earlier process recorded it already.
            Ok(false) => webhooks.iter().for_each(|webhook| webhook.remove_waiting(1)),
            Err(error) => {
                webhooks.iter().for_each(|webhook| webhook.remove_waiting(1));
                tracing::error!(sandbox_id = %event.sandbox, kind = kind.as_str(), %error, "failed to record an event");
            }
        }
    }

    /// Records that a sandbox was created.
    pub async fn record_created(&self, about: impl Into<Subject>) {
        self.record(EventKind::Created, about, Map::new()).await;
    }

    /// Records that a sandbox was forked from `parent`.
    pub async fn record_forked(&self, about: impl Into<Subject>, parent: &SandboxId) {
        self.record(EventKind::Created, about, one_field("source_sandbox_id", json!(parent))).await;
    }

    /// Records that the end of a sandbox was moved.
    pub async fn record_new_end(&self, about: impl Into<Subject>, end_at: OffsetDateTime) {
        self.record(EventKind::Updated, about, one_field("set_timeout", rfc3339(end_at))).await;
    }

    /// Records that the egress rules of a sandbox were replaced; `details` has the new ones.
    pub async fn record_network(&self, about: impl Into<Subject>, details: &SandboxDetails) {
        let network = details.network.clone().unwrap_or_default();
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
        self.record(EventKind::Updated, about, one_field("network_egress", Value::Object(egress))).await;
    }

    /// Records that a sandbox ended. To be called before its record says so: after a crash in between, the next server records the
    /// same event again.
    pub async fn record_killed(&self, about: impl Into<Subject>, reason: &str) {
        self.record(EventKind::Killed, about, one_field("kill_reason", json!(reason))).await;
    }

    /// As [`Events::record_killed`], for a sandbox that is only in the store.
    pub async fn record_killed_by_id(&self, id: &SandboxId, reason: &str) {
        match self.store.sandbox(id).await {
            Ok(Some(record)) => self.record_killed(&record, reason).await,
            Ok(None) => {}
            Err(error) => tracing::error!(sandbox_id = %id, %error, "failed to record an event"),
        }
    }
}

fn event_of(kind: EventKind, about: Subject, data: Map<String, Value>) -> Event {
    let at = truncate_to_micros(OffsetDateTime::now_utc());
    let mut all = one_field("sandbox_metadata", json!(about.metadata));
    if matches!(kind, EventKind::Paused | EventKind::Killed) {
        let ran = (about.stopped_at.unwrap_or(at) - about.started_at).whole_milliseconds();
        let execution = json!({
            "started_at": rfc3339(about.started_at),
            "vcpu_count": about.cpu_count,
            "memory_mb": about.memory_mib,
            "execution_time": i64::try_from(ran).unwrap_or(0).max(0),
        });
        all.insert("execution".to_owned(), execution);
    }
    all.extend(data);
    // A run ends once: after a crash its end has the same id again.
    let id = match kind {
        EventKind::Killed => EventId::of_end(about.execution),
        _ => EventId::in_order(),
    };
    Event {
        id,
        team: about.team,
        sandbox: about.id,
        kind,
        at,
        body: EventBody {
            template: about.template,
            build: about.build,
            execution: about.execution,
            data: all,
        },
    }
}
