//! The SQL statements of the store, in a dialect that SQLite and PostgreSQL both understand. Compiled once for each: `sqlite` and
//! `postgres` include this directory and define `Database`, `DbConnection`, `DbPool` and `DbRow` for it.
//!
//! Statements are written out in full, next to the record they fill. For both dialects parameters are `$1`, integers are `i64`, and
//! there is no scalar `max` and no `COLLATE`; columns to order by have the "C" collation in PostgreSQL's schema.

mod accounts;
mod events;
mod identity;
mod sandboxes;
mod secrets;
mod ssh_keys;
mod templates;
mod volumes;

use async_trait::async_trait;
use ids::{BuildId, KeyId, SandboxId, TeamId, TemplateId};
use time::OffsetDateTime;

use super::{Database, DbConnection, DbPool, DbRow};
use crate::{
    ApiKey, Build, Idempotency, Sandbox, SandboxDetails, Store, StoreError, TagAssignment, Team, Template,
};

/// Converts a time to microseconds since 1970, as in every time column.
fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn from_micros(table: &'static str, micros: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(StoreError::damaged(table))
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have string keys and nothing that fails to serialise")
}

/// Converts a number that is stored as an `i64`, as PostgreSQL has no unsigned types.
fn small(table: &'static str, number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(StoreError::damaged(table))
}

#[async_trait]
impl Store for Database {
    async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut write = self.write_durably().await?;
        let value = accounts::secret(write.conn(), name, fresh).await?;
        write.commit().await?;
        Ok(value)
    }

    async fn put_team(&self, team: &Team) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        accounts::put_team(write.conn(), team).await?;
        write.commit().await
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        accounts::teams(self.reads()).await
    }

    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        accounts::insert_key(write.conn(), key).await?;
        write.commit().await
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        accounts::keys(self.reads()).await
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<ApiKey>, StoreError> {
        accounts::key_by_hash(self.reads(), hash).await
    }

    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let found = accounts::rename_key(write.conn(), team, id, name).await?;
        write.commit().await?;
        Ok(found)
    }

    async fn delete_key(&self, team: TeamId, id: KeyId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let found = accounts::delete_key(write.conn(), team, id).await?;
        write.commit().await?;
        Ok(found)
    }

    async fn touch_keys(&self, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), StoreError> {
        let mut write = self.write_quickly().await?;
        for (id, at) in uses {
            accounts::touch_key(write.conn(), *id, *at).await?;
        }
        write.commit().await
    }

    async fn templates(&self) -> Result<Vec<Template>, StoreError> {
        templates::templates(self).await
    }

    async fn builds(&self) -> Result<Vec<Build>, StoreError> {
        templates::builds(self.reads()).await
    }

    async fn tag_assignments(&self) -> Result<Vec<TagAssignment>, StoreError> {
        templates::tag_assignments(self.reads()).await
    }

    async fn put_template(
        &self,
        template: &Template,
        build: Option<&Build>,
        tags: &[TagAssignment],
    ) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        templates::put_template(write.conn(), template).await?;
        if let Some(build) = build {
            templates::insert_build(write.conn(), build).await?;
        }
        for tag in tags {
            templates::assign_tag(write.conn(), tag).await?;
        }
        write.commit().await
    }

    async fn delete_template(&self, id: &TemplateId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let found = templates::delete_template(write.conn(), id).await?;
        write.commit().await?;
        Ok(found)
    }

    async fn delete_builds(&self, builds: &[BuildId]) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        for build in builds {
            templates::delete_build(write.conn(), *build).await?;
        }
        write.commit().await
    }

    async fn put_build(&self, build: &Build) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let found = templates::put_build(write.conn(), build).await?;
        write.commit().await?;
        Ok(found)
    }

    async fn assign_tags(&self, tags: &[TagAssignment]) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        for tag in tags {
            templates::assign_tag(write.conn(), tag).await?;
        }
        write.commit().await
    }

    async fn remove_tags(&self, template: &TemplateId, tags: &[String]) -> Result<u64, StoreError> {
        let mut write = self.write_durably().await?;
        let mut removed = 0;
        for tag in tags {
            removed += templates::remove_tag(write.conn(), template, tag).await?;
        }
        write.commit().await?;
        Ok(removed)
    }

    async fn count_spawns(&self, spawns: &[(TemplateId, u64, OffsetDateTime)]) -> Result<(), StoreError> {
        let mut write = self.write_quickly().await?;
        for (id, count, at) in spawns {
            templates::count_spawns(write.conn(), id, *count, *at).await?;
        }
        write.commit().await
    }

    async fn insert_sandbox(
        &self,
        sandbox: &Sandbox,
        idempotency: Option<&Idempotency>,
    ) -> Result<(), StoreError> {
        let Some(idempotency) = idempotency else {
            return sandboxes::insert(self.write_one().await?.conn(), sandbox).await;
        };
        let mut write = self.write_quickly().await?;
        sandboxes::insert(write.conn(), sandbox).await?;
        sandboxes::insert_idempotency(write.conn(), idempotency).await?;
        write.commit().await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        sandboxes::get(self.reads(), id).await
    }

    async fn open_sandboxes(&self) -> Result<Vec<Sandbox>, StoreError> {
        sandboxes::open(self.reads()).await
    }

    async fn set_sandbox_end(&self, id: &SandboxId, end_at: OffsetDateTime) -> Result<(), StoreError> {
        sandboxes::set_end(self.write_one().await?.conn(), id, end_at).await
    }

    async fn set_sandbox_details(&self, id: &SandboxId, details: &SandboxDetails) -> Result<(), StoreError> {
        sandboxes::set_details(self.write_one().await?.conn(), id, details).await
    }

    async fn put_sandbox(&self, sandbox: &Sandbox) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let found = sandboxes::put(write.conn(), sandbox).await?;
        write.commit().await?;
        Ok(found)
    }

    async fn put_sandbox_quickly(&self, sandbox: &Sandbox) -> Result<bool, StoreError> {
        sandboxes::put(self.write_one().await?.conn(), sandbox).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.flush_all().await
    }

    async fn finish_sandbox(
        &self,
        id: &SandboxId,
        ended_at: OffsetDateTime,
        reason: &str,
    ) -> Result<(), StoreError> {
        sandboxes::finish(self.write_one().await?.conn(), id, ended_at, reason).await
    }

    async fn idempotency(&self, team: TeamId, key: &str) -> Result<Option<Idempotency>, StoreError> {
        sandboxes::idempotency(self.reads(), team, key).await
    }

    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let mut write = self.write_quickly().await?;
        let pruned = sandboxes::prune(write.conn(), before).await?;
        write.commit().await?;
        Ok(pruned)
    }

    async fn close(&self) {
        self.close_all().await;
    }
}
