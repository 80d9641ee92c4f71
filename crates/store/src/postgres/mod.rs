//! The store in PostgreSQL 13 or newer, for servers whose state is on another host. Every write is flushed before the call returns:
//! sandboxes may outlive the host of the database.
//! Only one server may use a database: it holds a lock as long as a connection is open.
//! Statements are in `sql`, which is shared with SQLite.

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

/// Number of our advisory lock in the database: "coffer".
const LOCK: i64 = 0x636f_6666_6572;
/// How long to wait for the lock: a server that was killed a moment ago may still hold it.
const LOCK_PATIENCE: &str = "SET lock_timeout = '5s'";
/// SQLSTATE of a lock timeout.
const LOCK_NOT_AVAILABLE: &str = "55P03";

const CONNECTIONS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A PostgreSQL database.
#[derive(Debug)]
pub struct PostgresStore {
    pool: DbPool,
    /// The connection that holds the lock.
    lock: Mutex<Option<PgConnection>>,
}

impl PostgresStore {
    /// Opens the database with the URL `postgres://user:password@host/name` and migrates its schema. The database must
    /// exist; tables are created in the user's default schema.
    ///
    /// # Errors
    /// The database cannot be reached or migrated, or another server uses it.
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

    /// The same as [`Self::write_durably`]: sandboxes may outlive the host of the database.
    async fn write_quickly(&self) -> Result<Write, StoreError> {
        self.write_durably().await
    }

    async fn write_one(&self) -> Result<WriteOne, StoreError> {
        Ok(WriteOne(self.pool.acquire().await?))
    }

    /// Every write is flushed before it returns.
    #[expect(clippy::unused_async, reason = "the statements of both databases await it")]
    async fn flush_all(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reads(&self) -> &DbPool {
        &self.pool
    }

    /// Begins a transaction that reads one consistent state.
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

/// A connection for one statement as a transaction of its own.
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
