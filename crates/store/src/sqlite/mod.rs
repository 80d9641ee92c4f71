//! The store in SQLite, in write-ahead mode: one connection writes at a time while others read.
//! Sandbox records survive a crash of the server; keys, teams and templates also a power failure.
//! Statements are in `sql`, which is shared with PostgreSQL.

#[path = "../sql/mod.rs"]
mod sql;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use crate::StoreError;

type Database = SqliteStore;
type DbConnection = sqlx::SqliteConnection;
type DbPool = sqlx::SqlitePool;
type DbRow = sqlx::sqlite::SqliteRow;

/// A SQLite database file.
#[derive(Debug)]
pub struct SqliteStore {
    /// Connections that read.
    reads: DbPool,
    /// The connection that writes sandbox records, without a disk flush: sandboxes do not outlive a power failure either.
    quick: DbPool,
    /// The connection for all other writes, which are flushed before the call returns.
    durable: DbPool,
    /// Held by the current writer, so that none finds the database busy.
    gate: Mutex<()>,
    /// The write-ahead log. Its content is flushed before it is copied to the database.
    log: PathBuf,
}

/// A write transaction, with the lock for it.
struct Write<'a> {
    tx: Transaction<'static, Sqlite>,
    _gate: MutexGuard<'a, ()>,
}

impl Write<'_> {
    fn conn(&mut self) -> &mut DbConnection {
        &mut self.tx
    }

    async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
    }
}

/// The lock for writing one statement as a transaction of its own, which saves two round trips to the connection's thread.
struct WriteOne<'a> {
    connection: PoolConnection<Sqlite>,
    _gate: MutexGuard<'a, ()>,
}

impl WriteOne<'_> {
    fn conn(&mut self) -> &mut DbConnection {
        &mut self.connection
    }
}

impl SqliteStore {
    /// Opens the database file, creating it if necessary, and migrates its schema.
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
        crate::migrations::sqlite().run(&durable).await?;
        let quick = pool(1, SqliteSynchronous::Normal).await?;
        // If the disk is full, writes fail as they would without the reserve.
        let _ = reserve(&quick).await;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let reads = pool(2, SqliteSynchronous::Normal).await?;
        Ok(Self { reads, quick, durable, gate: Mutex::new(()), log: log.into() })
    }

    async fn write_durably(&self) -> Result<Write<'_>, StoreError> {
        let gate = self.gate.lock().await;
        Ok(Write { tx: self.durable.begin().await?, _gate: gate })
    }

    async fn write_quickly(&self) -> Result<Write<'_>, StoreError> {
        let gate = self.gate.lock().await;
        Ok(Write { tx: self.quick.begin().await?, _gate: gate })
    }

    async fn write_one(&self) -> Result<WriteOne<'_>, StoreError> {
        let gate = self.gate.lock().await;
        Ok(WriteOne { connection: self.quick.acquire().await?, _gate: gate })
    }

    /// Flushes the log only, so no other writer has to wait.
    async fn flush_all(&self) -> Result<(), StoreError> {
        let log = self.log.clone();
        let flushed = tokio::task::spawn_blocking(move || File::open(log)?.sync_data()).await;
        let flushed = flushed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        Ok(flushed.map_err(sqlx::Error::Io)?)
    }

    fn reads(&self) -> &DbPool {
        &self.reads
    }

    /// Begins a transaction that reads one consistent state.
    async fn read_together(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.reads.begin().await?)
    }

    async fn close_all(&self) {
        let _gate = self.gate.lock().await;
        self.reads.close().await;
        self.quick.close().await;
        self.durable.close().await;
    }
}

/// Extends the log and the database to the size that they reach between two checkpoints. Both are then written in place, so that
/// sandboxes can be ended, and their space freed, while the disk is full.
async fn reserve(pool: &DbPool) -> Result<(), StoreError> {
    // In two transactions: pages that a single transaction fills and drops are never written.
    for statement in [
        "DROP TABLE IF EXISTS reserve",
        "CREATE TABLE reserve AS SELECT zeroblob(4800000) AS room",
        "DROP TABLE reserve",
    ] {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn passes_the_store_suite() {
        crate::suite::run(|| async {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let store = SqliteStore::open(&dir.path().join("state.db")).await.expect("a fresh database");
            (store, dir)
        })
        .await;
    }

    #[tokio::test]
    async fn the_log_has_its_full_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let store = SqliteStore::open(&path).await.unwrap();
        let sizes =
            || ["state.db", "state.db-wal"].map(|name| dir.path().join(name).metadata().unwrap().len());
        let before = sizes();
        assert!(before.iter().all(|size| *size > 4_000_000), "{before:?}");
        for number in 0..2000_u32 {
            store.secret(&number.to_string(), &[7; 64]).await.unwrap();
        }
        assert_eq!(sizes(), before);
        store.close().await;
    }

    #[tokio::test]
    async fn records_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let first = SqliteStore::open(&path).await.unwrap();
        let seed = first.secret("seed", &[7; 32]).await.unwrap();
        // Not closed, as in a crash.
        let second = SqliteStore::open(&path).await.unwrap();
        assert_eq!(second.secret("seed", &[8; 32]).await.unwrap(), seed);
        first.close().await;
        second.close().await;
    }
}
