//! SQLite in write-ahead mode: one connection writes at a time, others read beside it.
//! Sandbox records survive a crash of the server; keys, teams and templates also a power cut.
//! Statements are written out in full, next to the record they fill.

mod accounts;
mod sandboxes;
mod templates;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use ids::{BuildId, KeyId, SandboxId, TeamId, TemplateId};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    ApiKey, Build, BuildStatus, Idempotency, Sandbox, SandboxDetails, Store, StoreError, TagAssignment, Team,
    Template,
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The embedded database.
#[derive(Debug)]
pub struct SqliteStore {
    /// Many readers.
    reads: SqlitePool,
    /// The writer of sandbox records: no disk flush per write. Sandboxes do not outlive a power cut either.
    quick: SqlitePool,
    /// The writer of everything else: flushed before the call returns.
    durable: SqlitePool,
    /// One writer at a time, so that none ever meets a busy database.
    gate: Mutex<()>,
}

/// A write transaction, and the right to have one.
struct Write<'a> {
    tx: Transaction<'static, Sqlite>,
    _gate: MutexGuard<'a, ()>,
}

impl Write<'_> {
    fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }

    async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
    }
}

impl SqliteStore {
    /// Opens the database file, making it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = |size, synchronous| {
            SqlitePoolOptions::new()
                .max_connections(size)
                .min_connections(1)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_with(options.clone().synchronous(synchronous))
        };
        let durable = pool(1, SqliteSynchronous::Full).await?;
        MIGRATIONS.run(&durable).await?;
        Ok(Self {
            reads: pool(2, SqliteSynchronous::Normal).await?,
            quick: pool(1, SqliteSynchronous::Normal).await?,
            durable,
            gate: Mutex::new(()),
        })
    }

    async fn write_durably(&self) -> Result<Write<'_>, StoreError> {
        let gate = self.gate.lock().await;
        Ok(Write { tx: self.durable.begin().await?, _gate: gate })
    }

    async fn write_quickly(&self) -> Result<Write<'_>, StoreError> {
        let gate = self.gate.lock().await;
        Ok(Write { tx: self.quick.begin().await?, _gate: gate })
    }
}

/// Microseconds since the epoch, as every time column holds them.
fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn from_micros(table: &'static str, micros: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(StoreError::damaged(table))
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have string keys and nothing that fails to serialise")
}

#[async_trait]
impl Store for SqliteStore {
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
        accounts::teams(&self.reads).await
    }

    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        accounts::insert_key(write.conn(), key).await?;
        write.commit().await
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        accounts::keys(&self.reads).await
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<ApiKey>, StoreError> {
        accounts::key_by_hash(&self.reads, hash).await
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
        templates::templates(&self.reads).await
    }

    async fn builds(&self) -> Result<Vec<Build>, StoreError> {
        templates::builds(&self.reads).await
    }

    async fn tag_assignments(&self) -> Result<Vec<TagAssignment>, StoreError> {
        templates::tag_assignments(&self.reads).await
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

    async fn set_build_status(
        &self,
        id: BuildId,
        status: BuildStatus,
        finished_at: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        templates::set_build_status(write.conn(), id, status, finished_at).await?;
        write.commit().await
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
            // One statement is its own transaction: two round trips to the writer's thread less.
            let _gate = self.gate.lock().await;
            let mut conn = self.quick.acquire().await?;
            return sandboxes::insert(&mut conn, sandbox).await;
        };
        let mut write = self.write_quickly().await?;
        sandboxes::insert(write.conn(), sandbox).await?;
        sandboxes::insert_idempotency(write.conn(), idempotency).await?;
        write.commit().await
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        sandboxes::get(&self.reads, id).await
    }

    async fn open_sandboxes(&self) -> Result<Vec<Sandbox>, StoreError> {
        sandboxes::open(&self.reads).await
    }

    async fn set_sandbox_end(&self, id: &SandboxId, end_at: OffsetDateTime) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        sandboxes::set_end(&mut *self.quick.acquire().await?, id, end_at).await
    }

    async fn set_sandbox_details(&self, id: &SandboxId, details: &SandboxDetails) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        sandboxes::set_details(&mut *self.quick.acquire().await?, id, details).await
    }

    async fn finish_sandbox(
        &self,
        id: &SandboxId,
        ended_at: OffsetDateTime,
        reason: &str,
    ) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        sandboxes::finish(&mut *self.quick.acquire().await?, id, ended_at, reason).await
    }

    async fn idempotency(&self, team: TeamId, key: &str) -> Result<Option<Idempotency>, StoreError> {
        sandboxes::idempotency(&self.reads, team, key).await
    }

    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let mut write = self.write_quickly().await?;
        let pruned = sandboxes::prune(write.conn(), before).await?;
        write.commit().await?;
        Ok(pruned)
    }

    async fn close(&self) {
        let _gate = self.gate.lock().await;
        self.reads.close().await;
        self.quick.close().await;
        self.durable.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_the_store_suite() {
        crate::suite::run(|| async {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let store = SqliteStore::open(&dir.path().join("state.db")).await.expect("a fresh database");
            (store, dir)
        })
        .await;
    }

    #[tokio::test]
    async fn records_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let first = SqliteStore::open(&path).await.unwrap();
        let seed = first.secret("seed", &[7; 32]).await.unwrap();
        // Not closed on purpose: a crash does not close anything.
        let second = SqliteStore::open(&path).await.unwrap();
        assert_eq!(second.secret("seed", &[8; 32]).await.unwrap(), seed);
        first.close().await;
        second.close().await;
    }
}
