//! Rows of events, webhooks and deliveries.
//! Lists are ordered by time and then by id, so that pages do not overlap.
//! A sandbox's events are as durable as its record: they survive a crash of the server.

use async_trait::async_trait;
use ids::{DeliveryId, TeamId, WebhookId};
use sqlx::Row;
use time::OffsetDateTime;

use super::{Database, DbConnection, DbRow, from_micros, json, micros, small};
use crate::{Delivery, Event, EventKind, EventQuery, EventStore, StoreError, Webhook};

/// Statement for events of a team ($1), of a sandbox ($2) or all, and of the kinds in a comma-separated list ($3) or all.
macro_rules! select {
    ($condition:literal, $order:literal) => {
        concat!(
            "SELECT id, team, sandbox, kind, at, body_json FROM events WHERE ",
            $condition,
            " AND ($3 = '' OR $3 LIKE '%,' || kind || ',%') ORDER BY ",
            $order,
            " LIMIT $4 OFFSET $5"
        )
    };
}

#[async_trait]
impl EventStore for Database {
    async fn insert_event(&self, event: &Event, deliveries: &[Delivery]) -> Result<bool, StoreError> {
        if deliveries.is_empty() {
            return insert_event(self.write_one().await?.conn(), event).await;
        }
        let mut write = self.write_quickly().await?;
        if !insert_event(write.conn(), event).await? {
            return Ok(false);
        }
        for delivery in deliveries {
            sqlx::query(
                "INSERT INTO deliveries (id, webhook, event, attempts, due_at) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(delivery.id.to_string())
            .bind(delivery.webhook.to_string())
            .bind(event.id.to_string())
            .bind(i64::from(delivery.attempts))
            .bind(micros(delivery.due_at))
            .execute(write.conn())
            .await?;
        }
        write.commit().await?;
        Ok(true)
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        let statement = match (query.sandbox.is_some(), query.ascending) {
            (false, false) => select!("team = $1 AND $2 = ''", "at DESC, id DESC"),
            (false, true) => select!("team = $1 AND $2 = ''", "at, id"),
            (true, false) => select!("team = $1 AND sandbox = $2", "at DESC, id DESC"),
            (true, true) => select!("team = $1 AND sandbox = $2", "at, id"),
        };
        let kinds: Vec<&str> = query.kinds.iter().map(|kind| kind.as_str()).collect();
        let rows = sqlx::query(statement)
            .bind(query.team.to_string())
            .bind(query.sandbox.as_ref().map_or("", |sandbox| sandbox.as_str()))
            .bind(if kinds.is_empty() { String::new() } else { format!(",{},", kinds.join(",")) })
            .bind(i64::from(query.limit))
            .bind(i64::from(query.offset))
            .fetch_all(self.reads())
            .await?;
        rows.iter().map(|row| event(row, 0)).collect()
    }

    async fn prune_events(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM events WHERE at < $1")
            .bind(micros(before))
            .execute(self.write_one().await?.conn())
            .await?;
        Ok(done.rows_affected())
    }

    async fn put_webhook(&self, webhook: &Webhook) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        let events: Vec<&str> = webhook.events.iter().map(|kind| kind.as_str()).collect();
        sqlx::query(
            "INSERT INTO webhooks (id, team, name, url, enabled, events_json, secret, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET name = $3, url = $4, \
             enabled = $5, events_json = $6, secret = $7",
        )
        .bind(webhook.id.to_string())
        .bind(webhook.team.to_string())
        .bind(&webhook.name)
        .bind(&webhook.url)
        .bind(webhook.enabled)
        .bind(json(&events))
        .bind(&webhook.secret)
        .bind(micros(webhook.created_at))
        .execute(write.conn())
        .await?;
        write.commit().await
    }

    async fn webhooks(&self) -> Result<Vec<Webhook>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, team, name, url, enabled, events_json, secret, created_at FROM webhooks \
             ORDER BY created_at, id",
        )
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(webhook).collect()
    }

    async fn delete_webhook(&self, team: TeamId, id: WebhookId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("DELETE FROM webhooks WHERE id = $1 AND team = $2")
            .bind(id.to_string())
            .bind(team.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    async fn waiting_deliveries(&self, webhook: WebhookId) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT count(*) FROM deliveries WHERE webhook = $1")
            .bind(webhook.to_string())
            .fetch_one(self.reads())
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    async fn next_deliveries(
        &self,
        webhook: WebhookId,
        limit: u32,
    ) -> Result<Vec<(Delivery, Event)>, StoreError> {
        let rows = sqlx::query(
            "SELECT d.id, d.attempts, d.due_at, e.id, e.team, e.sandbox, e.kind, e.at, e.body_json \
             FROM deliveries d JOIN events e ON e.id = d.event WHERE d.webhook = $1 \
             ORDER BY d.due_at, e.at, d.id LIMIT $2",
        )
        .bind(webhook.to_string())
        .bind(i64::from(limit))
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(|row| Ok((delivery(row, webhook)?, event(row, 3)?))).collect()
    }

    async fn postpone_delivery(&self, delivery: &Delivery) -> Result<(), StoreError> {
        sqlx::query("UPDATE deliveries SET attempts = $1, due_at = $2 WHERE id = $3")
            .bind(i64::from(delivery.attempts))
            .bind(micros(delivery.due_at))
            .bind(delivery.id.to_string())
            .execute(self.write_one().await?.conn())
            .await?;
        Ok(())
    }

    async fn delete_deliveries(&self, ids: &[DeliveryId]) -> Result<(), StoreError> {
        let mut write = self.write_quickly().await?;
        for id in ids {
            sqlx::query("DELETE FROM deliveries WHERE id = $1")
                .bind(id.to_string())
                .execute(write.conn())
                .await?;
        }
        write.commit().await
    }
}

async fn insert_event(conn: &mut DbConnection, event: &Event) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO events (id, team, sandbox, kind, at, body_json) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(event.id.to_string())
    .bind(event.team.to_string())
    .bind(event.sandbox.as_str())
    .bind(event.kind.as_str())
    .bind(micros(event.at))
    .bind(json(&event.body))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

fn kind(table: &'static str, text: &str) -> Result<EventKind, StoreError> {
    let unknown = || StoreError::damaged(table)(format!("unknown event {text:?}"));
    EventKind::parse(text).ok_or_else(unknown)
}

/// Reads the event whose columns begin at `first`.
fn event(row: &DbRow, first: usize) -> Result<Event, StoreError> {
    const TABLE: &str = "events";
    let text = |column: usize| row.try_get::<String, _>(first + column);
    Ok(Event {
        id: text(0)?.parse().map_err(StoreError::damaged(TABLE))?,
        team: text(1)?.parse().map_err(StoreError::damaged(TABLE))?,
        sandbox: text(2)?.parse().map_err(StoreError::damaged(TABLE))?,
        kind: kind(TABLE, &text(3)?)?,
        at: from_micros(TABLE, row.try_get(first + 4)?)?,
        body: serde_json::from_str(&text(5)?).map_err(StoreError::damaged(TABLE))?,
    })
}

fn delivery(row: &DbRow, webhook: WebhookId) -> Result<Delivery, StoreError> {
    const TABLE: &str = "deliveries";
    let id: String = row.try_get(0)?;
    Ok(Delivery {
        id: id.parse().map_err(StoreError::damaged(TABLE))?,
        webhook,
        attempts: small(TABLE, row.try_get(1)?)?,
        due_at: from_micros(TABLE, row.try_get(2)?)?,
    })
}

fn webhook(row: &DbRow) -> Result<Webhook, StoreError> {
    const TABLE: &str = "webhooks";
    let text = |column: usize| row.try_get::<String, _>(column);
    let events: Vec<String> = serde_json::from_str(&text(5)?).map_err(StoreError::damaged(TABLE))?;
    Ok(Webhook {
        id: text(0)?.parse().map_err(StoreError::damaged(TABLE))?,
        team: text(1)?.parse().map_err(StoreError::damaged(TABLE))?,
        name: text(2)?,
        url: text(3)?,
        enabled: row.try_get(4)?,
        events: events.iter().map(|text| kind(TABLE, text)).collect::<Result<_, _>>()?,
        secret: text(6)?,
        created_at: from_micros(TABLE, row.try_get(7)?)?,
    })
}
