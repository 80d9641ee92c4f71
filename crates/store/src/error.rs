//! Errors of the store: the database failed, a record is damaged, or a request conflicts with a record.

/// A failed store call.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database reported an error or is not reachable.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be migrated.
    #[error("the database could not be migrated: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A stored record cannot be read back.
    #[error("a record in {table} is damaged: {detail}")]
    Damaged {
        /// Its table.
        table: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Another server uses the database.
    #[error("another server uses this database; stop it, or give this one a database of its own")]
    InUse,
    /// A record with this name or id exists already.
    #[error("{0} exists already")]
    Conflict(&'static str),
}

impl StoreError {
    /// For `map_err`: an error while reading a record of a table.
    pub(crate) fn damaged<E: std::fmt::Display>(table: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Damaged { table, detail: error.to_string() }
    }

    /// For `map_err`: turns a violated unique constraint into a conflict over `what`.
    pub(crate) fn conflict(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Self::Conflict(what),
            _ => Self::Database(error),
        }
    }
}
