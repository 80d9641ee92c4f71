//! Webhooks as their teams see them: create, list, change, delete. The secret is never shown.
//! An address that can never be delivered to is refused at once.

use std::sync::Arc;

use ids::{TeamId, WebhookId};
use store::{EventKind, Webhook, truncate_to_micros};
use time::OffsetDateTime;
use webhook::Target;

use super::{EventError, Events};

/// Maximum number of webhooks of a team.
const MAX_WEBHOOKS: usize = 100;
/// Maximum length of a name, bytes.
const MAX_NAME: usize = 255;
/// Maximum length of a secret, bytes.
const MAX_SECRET: usize = 1024;

/// A webhook to create.
#[derive(Clone)]
pub struct NewWebhook {
    /// Its name.
    pub name: String,
    /// URL that events are posted to.
    pub url: String,
    /// Whether events are posted.
    pub enabled: bool,
    /// Kinds of events that are posted.
    pub events: Vec<EventKind>,
    /// Secret that deliveries are signed with.
    pub secret: String,
}

/// New values of a webhook; none keeps the old one.
#[derive(Clone, Default)]
pub struct WebhookChange {
    /// Its name.
    pub name: Option<String>,
    /// URL that events are posted to.
    pub url: Option<String>,
    /// Whether events are posted.
    pub enabled: Option<bool>,
    /// Kinds of events that are posted.
    pub events: Option<Vec<EventKind>>,
    /// Secret that deliveries are signed with.
    pub secret: Option<String>,
}

impl Events {
    /// Creates a webhook, which gets the events from now on.
    ///
    /// # Errors
    /// A value is not acceptable, the team has too many, or the store failed.
    pub async fn create_webhook(
        self: &Arc<Self>,
        team: TeamId,
        new: NewWebhook,
    ) -> Result<Arc<Webhook>, EventError> {
        let _changing = self.changing.lock().await;
        if self.webhooks_of(team).len() >= MAX_WEBHOOKS {
            return Err(EventError::Invalid(format!(
                "a team has at most {MAX_WEBHOOKS} webhooks; delete one first"
            )));
        }
        let record = Webhook {
            id: WebhookId::generate(),
            team,
            name: new.name,
            url: new.url,
            enabled: new.enabled,
            events: new.events,
            secret: new.secret,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        };
        let record = self.check_webhook(record)?;
        self.store.put_webhook(&record).await?;
        self.start_webhook(record.clone(), 0);
        Ok(Arc::new(record))
    }

    /// Returns a team's webhooks, oldest first.
    #[must_use]
    pub fn webhooks(&self, team: TeamId) -> Vec<Arc<Webhook>> {
        self.webhooks_of(team).iter().map(|queue| queue.record()).collect()
    }

    /// Returns one of a team's webhooks.
    ///
    /// # Errors
    /// The team has no such webhook.
    pub fn webhook(&self, team: TeamId, id: WebhookId) -> Result<Arc<Webhook>, EventError> {
        let found = self.webhooks(team).into_iter().find(|record| record.id == id);
        found.ok_or(EventError::WebhookNotFound)
    }

    /// Changes a webhook; waiting deliveries use the new values.
    ///
    /// # Errors
    /// There is no such webhook, a value is not acceptable, or the store failed.
    pub async fn change_webhook(
        &self,
        team: TeamId,
        id: WebhookId,
        change: WebhookChange,
    ) -> Result<Arc<Webhook>, EventError> {
        let _changing = self.changing.lock().await;
        let queues = self.webhooks_of(team);
        let queue = queues.iter().find(|queue| queue.record().id == id);
        let queue = queue.ok_or(EventError::WebhookNotFound)?;
        let old = Webhook::clone(&queue.record());
        let record = self.check_webhook(Webhook {
            name: change.name.unwrap_or(old.name),
            url: change.url.unwrap_or(old.url),
            enabled: change.enabled.unwrap_or(old.enabled),
            events: change.events.unwrap_or(old.events),
            secret: change.secret.unwrap_or(old.secret),
            ..old
        })?;
        self.store.put_webhook(&record).await?;
        queue.replace(record);
        Ok(queue.record())
    }

    /// Deletes a webhook with its waiting deliveries.
    ///
    /// # Errors
    /// There is no such webhook, or the store failed.
    pub async fn delete_webhook(&self, team: TeamId, id: WebhookId) -> Result<(), EventError> {
        let _changing = self.changing.lock().await;
        if !self.store.delete_webhook(team, id).await? {
            return Err(EventError::WebhookNotFound);
        }
        self.stop_webhook(team, id);
        Ok(())
    }

    /// Checks the values of a webhook.
    fn check_webhook(&self, mut record: Webhook) -> Result<Webhook, EventError> {
        let invalid = |text: String| Err(EventError::Invalid(text));
        if record.name.trim().is_empty() || record.name.len() > MAX_NAME {
            return invalid(format!("name must be from 1 to {MAX_NAME} bytes"));
        }
        if record.secret.is_empty() || record.secret.len() > MAX_SECRET {
            return invalid(format!("signatureSecret must be from 1 to {MAX_SECRET} bytes"));
        }
        if record.events.is_empty() {
            return invalid("events must name at least one event".to_owned());
        }
        record.events.sort_unstable();
        record.events.dedup();
        if let Err(error) = Target::parse(&record.url, &self.config.allowed_networks) {
            return invalid(error.to_string());
        }
        Ok(record)
    }
}
