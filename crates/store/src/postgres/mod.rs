//! PostgreSQL 13 or newer, for servers whose state lives elsewhere. Every write is on disk before the call returns: here
//! sandboxes may outlive the machine that the database is on.
//! One server at a time, for now: a lock held by an open connection keeps a second one out.
//! Statements are in `sql`, which SQLite shares.

#[path = "../sql/mod.rs"]
mod sql;

use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tokio::sync::Mutex;

use crate::StoreError;

type Database = PostgresStore;
type DbConnection = PgConnection;
type DbPool = sqlx::PgPool;
type DbRow = sqlx::postgres::PgRow;

/// Ours among the database's advisory locks: "coffer".
const LOCK: i64 = 0x636f_6666_6572;
/// A server that was killed a moment ago may still have it.
const LOCK_PATIENCE: &str = "SET lock_timeout = '5s'";
/// SQLSTATE of a lock that was waited for in vain.
const LOCK_NOT_AVAILABLE: &str = "55P03";

const CONNECTIONS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A PostgreSQL database.
#[derive(Debug)]
pub struct PostgresStore {
    pool: DbPool,
    /// Holds the lock for as long as it is open.
    lock: Mutex<Option<PgConnection>>,
}

impl PostgresStore {
    /// Opens the database that `url` (`postgres://user:password@host/name`) names and brings its schema up to date. The database
    /// must exist; tables are made in the user's default schema.
    ///
    /// # Errors
    /// It cannot be reached or migrated, or another server uses it.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("cofferdam");
        let connect = tokio::time::timeout(PATIENCE, PgConnection::connect_with(&options));
        let mut lock = connect.await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        take_lock(&mut lock).await?;
        crate::migrations::postgres().run(&mut lock).await?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(1)
            .acquire_timeout(PATIENCE)
            .connect_with(options)
            .await?;
        Ok(Self { pool, lock: Mutex::new(Some(lock)) })
    }

    async fn write_durably(&self) -> Result<Write, StoreError> {
        Ok(Write(self.pool.begin().await?))
    }

    /// Nothing is worth less here; see the module.
    async fn write_quickly(&self) -> Result<Write, StoreError> {
        self.write_durably().await
    }

    async fn write_one(&self) -> Result<WriteOne, StoreError> {
        Ok(WriteOne(self.pool.acquire().await?))
    }

    /// Every write is flushed before it returns.
    #[expect(clippy::unused_async, reason = "the statements of both databases await it")]
    async fn settle_all(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reads(&self) -> &DbPool {
        &self.pool
    }

    /// A transaction whose reads are of one moment.
    async fn read_together(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?)
    }

    async fn close_all(&self) {
        self.pool.close().await;
        if let Some(lock) = self.lock.lock().await.take() {
            let _ = lock.close().await;
        }
    }
}

/// A write transaction.
struct Write(Transaction<'static, Postgres>);

impl Write {
    fn conn(&mut self) -> &mut DbConnection {
        &mut self.0
    }

    async fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit().await?)
    }
}

/// A connection for one statement, which is its own transaction.
struct WriteOne(PoolConnection<Postgres>);

impl WriteOne {
    fn conn(&mut self) -> &mut DbConnection {
        &mut self.0
    }
}

async fn take_lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(LOCK_PATIENCE).execute(&mut *connection).await?;
    let taken = sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await;
    match taken {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {
            Err(StoreError::InUse)
        }
        taken => {
            taken?;
            sqlx::query("RESET lock_timeout").execute(connection).await?;
            Ok(())
        }
    }
}
