//! SQLite in write-ahead mode: one connection writes at a time, others read beside it.
//! Sandbox records survive a crash of the server; keys, teams and templates also a power cut.
//! Statements are in `sql`, which PostgreSQL shares.

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

/// The embedded database.
#[derive(Debug)]
pub struct SqliteStore {
    /// Many readers.
    reads: DbPool,
    /// The writer of sandbox records: no disk flush per write. Sandboxes do not outlive a power cut either.
    quick: DbPool,
    /// The writer of everything else: flushed before the call returns.
    durable: DbPool,
    /// One writer at a time, so that none ever meets a busy database.
    gate: Mutex<()>,
    /// What is written goes here first; what leaves it for the database has been flushed before.
    log: PathBuf,
}

/// A write transaction, and the right to have one.
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

/// The right to write one statement, which is its own transaction: two round trips to the writer's thread less.
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
        crate::migrations::sqlite().run(&durable).await?;
        let quick = pool(1, SqliteSynchronous::Normal).await?;
        // Without room it is as it would be without this: what must grow fails.
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

    /// The log alone is flushed: nobody waits for that but the caller.
    async fn settle_all(&self) -> Result<(), StoreError> {
        let log = self.log.clone();
        let flushed = tokio::task::spawn_blocking(move || File::open(log)?.sync_data()).await;
        let flushed = flushed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        Ok(flushed.map_err(sqlx::Error::Io)?)
    }

    fn reads(&self) -> &DbPool {
        &self.reads
    }

    /// A transaction whose reads are of one moment.
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

/// Makes the log and the database as long as they get between two checkpoints: both are then written in place, so that
/// sandboxes can be ended, and their space given back, while the disk is full.
async fn reserve(pool: &DbPool) -> Result<(), StoreError> {
    // In two transactions: pages that one transaction both fills and drops are never written.
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
    async fn the_log_is_as_long_as_it_gets() {
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
        // Not closed on purpose: a crash does not close anything.
        let second = SqliteStore::open(&path).await.unwrap();
        assert_eq!(second.secret("seed", &[8; 32]).await.unwrap(), seed);
        first.close().await;
        second.close().await;
    }
}
