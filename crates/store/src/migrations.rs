//! The migrations of the databases, which are embedded in the program.
//!
//! They are listed here, and not collected by sqlx's `migrate!`: for that macro's crate, cargo would build sqlx with both databases and TLS
//! a second time.

use std::borrow::Cow;

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// A migration: its version, its description, and its text.
type Source = (i64, &'static str, &'static str);

/// The sources in a directory of `migrations/`.
macro_rules! sources {
    ($database:literal) => {
        [
            (1, "initial", include_str!(concat!("../migrations/", $database, "/0001_initial.sql"))),
            (2, "events", include_str!(concat!("../migrations/", $database, "/0002_events.sql"))),
            (3, "identity", include_str!(concat!("../migrations/", $database, "/0003_identity.sql"))),
            (
                10,
                "pause and snapshots",
                include_str!(concat!("../migrations/", $database, "/0010_pause_and_snapshots.sql")),
            ),
            (11, "builds", include_str!(concat!("../migrations/", $database, "/0011_builds.sql"))),
            (
                12,
                "team secrets",
                include_str!(concat!("../migrations/", $database, "/0012_team_secrets.sql")),
            ),
            (13, "volumes", include_str!(concat!("../migrations/", $database, "/0013_volumes.sql"))),
            (14, "ssh_keys", include_str!(concat!("../migrations/", $database, "/0014_ssh_keys.sql"))),
        ]
    };
}

const SQLITE: [Source; 8] = sources!("sqlite");
#[cfg(feature = "postgres")]
const POSTGRES: [Source; 8] = sources!("postgres");

/// Returns the migrations of a SQLite database.
pub(crate) fn sqlite() -> Migrator {
    migrator(&SQLITE)
}

/// Returns the migrations of a PostgreSQL database.
#[cfg(feature = "postgres")]
pub(crate) fn postgres() -> Migrator {
    migrator(&POSTGRES)
}

fn migrator(sources: &[Source]) -> Migrator {
    let migrations = sources.iter().map(|(version, description, sql)| {
        let (description, sql) = (Cow::Borrowed(*description), SqlStr::from_static(sql));
        Migration::new(*version, description, MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_file_is_listed() {
        for database in ["sqlite", "postgres"] {
            let dir = format!("{}/migrations/{database}", env!("CARGO_MANIFEST_DIR"));
            let entries = fs::read_dir(dir).unwrap();
            let mut files: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            files.sort_unstable();
            let listed = SQLITE.map(|(version, description, _)| {
                format!("{version:04}_{}.sql", description.replace(' ', "_"))
            });
            assert_eq!(files, listed, "{database}");
        }
    }
}
