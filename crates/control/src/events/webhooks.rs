//! Webhooks as their teams see them: made, listed, changed, deleted.
//! The secret goes in and never comes out.
//! What can never be delivered to is refused when it is written down.

use std::sync::Arc;

use ids::{TeamId, WebhookId};
use store::{EventKind, Webhook, truncate_to_micros};
use time::OffsetDateTime;
use webhook::Target;

use crate::{Control, ControlError};

/// Webhooks of one team, at most.
const MOST: usize = 100;
const MAX_NAME: usize = 255;
const MAX_SECRET: usize = 1024;

/// A webhook to be.
#[derive(Clone)]
pub struct NewWebhook {
    /// Its name for people.
    pub name: String,
    /// Where to post to.
    pub url: String,
    /// Whether anything is posted.
    pub enabled: bool,
    /// What to tell.
    pub events: Vec<EventKind>,
    /// What deliveries are signed with.
    pub secret: String,
}

/// New values; what is not given stays.
#[derive(Clone, Default)]
pub struct WebhookChange {
    /// Its name for people.
    pub name: Option<String>,
    /// Where to post to.
    pub url: Option<String>,
    /// Whether anything is posted.
    pub enabled: Option<bool>,
    /// What to tell.
    pub events: Option<Vec<EventKind>>,
    /// What deliveries are signed with.
    pub secret: Option<String>,
}

impl Control {
    /// Makes a webhook; what happens from now on is told to it.
    ///
    /// # Errors
    /// A value is not acceptable, the team has too many, or the store failed.
    pub async fn create_webhook(
        self: &Arc<Self>,
        team: TeamId,
        new: NewWebhook,
    ) -> Result<Arc<Webhook>, ControlError> {
        let _changing = self.registering.lock().await;
        if self.hooks.of_team(team).len() >= MOST {
            return Err(ControlError::Invalid(format!(
                "a team has at most {MOST} webhooks; delete one first"
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
        self.start_hook(record.clone(), 0);
        Ok(Arc::new(record))
    }

    /// A team's webhooks, oldest first.
    #[must_use]
    pub fn webhooks(&self, team: TeamId) -> Vec<Arc<Webhook>> {
        self.hooks.of_team(team).iter().map(|hook| hook.record()).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// The team has no such webhook.
    pub fn webhook(&self, team: TeamId, id: WebhookId) -> Result<Arc<Webhook>, ControlError> {
        let found = self.webhooks(team).into_iter().find(|record| record.id == id);
        found.ok_or(ControlError::NotFound("Webhook not found"))
    }

    /// Changes a webhook; deliveries that wait go by the new values.
    ///
    /// # Errors
    /// There is no such webhook, a value is not acceptable, or the store failed.
    pub async fn change_webhook(
        &self,
        team: TeamId,
        id: WebhookId,
        change: WebhookChange,
    ) -> Result<Arc<Webhook>, ControlError> {
        let _changing = self.registering.lock().await;
        let hooks = self.hooks.of_team(team);
        let hook = hooks.iter().find(|hook| hook.record().id == id);
        let hook = hook.ok_or(ControlError::NotFound("Webhook not found"))?;
        let old = Webhook::clone(&hook.record());
        let record = self.check_webhook(Webhook {
            name: change.name.unwrap_or(old.name),
            url: change.url.unwrap_or(old.url),
            enabled: change.enabled.unwrap_or(old.enabled),
            events: change.events.unwrap_or(old.events),
            secret: change.secret.unwrap_or(old.secret),
            ..old
        })?;
        self.store.put_webhook(&record).await?;
        hook.replace(record);
        Ok(hook.record())
    }

    /// Deletes a webhook, and what waits for it.
    ///
    /// # Errors
    /// There is no such webhook, or the store failed.
    pub async fn delete_webhook(&self, team: TeamId, id: WebhookId) -> Result<(), ControlError> {
        let _changing = self.registering.lock().await;
        if !self.store.delete_webhook(team, id).await? {
            return Err(ControlError::NotFound("Webhook not found"));
        }
        self.hooks.remove(team, id);
        Ok(())
    }

    fn check_webhook(&self, mut record: Webhook) -> Result<Webhook, ControlError> {
        let invalid = |text: String| Err(ControlError::Invalid(text));
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
        if let Err(error) = Target::parse(&record.url, &self.hooks.allowed) {
            return invalid(error.to_string());
        }
        Ok(record)
    }
}
