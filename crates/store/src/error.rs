//! What can go wrong in the store.
//! The caller needs to know only whether the record, the wish or the disk is at fault.
//! Causes stay attached as sources.

/// A failed store call.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is not reachable.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database could not be migrated: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A stored record cannot be read back.
    #[error("a record in {table} is damaged: {detail}")]
    Damaged {
        /// The table it is in.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Another server has the database open.
    #[error("another server uses this database; stop it, or give this one a database of its own")]
    InUse,
    /// Something of this name or id exists already.
    #[error("{0} exists already")]
    Conflict(&'static str),
}

impl StoreError {
    /// For `map_err` while reading a record.
    pub(crate) fn damaged<E: std::fmt::Display>(table: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Damaged { table, detail: error.to_string() }
    }

    /// Turns a violated unique constraint into a conflict over `what`.
    pub(crate) fn conflict(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Self::Conflict(what),
            _ => Self::Database(error),
        }
    }
}
