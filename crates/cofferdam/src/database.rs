//! Opens the server's database: an SQLite file in the data directory, or PostgreSQL.
//! A server removes files of the data directory that no record names. So that it never removes files whose records are in another
//! database, a data directory and its PostgreSQL database have a common id, and neither is used with another.

use std::fs;
use std::io;
use std::sync::Arc;

use store::{PostgresStore, SqliteStore, Store};

use crate::failure::Failure;
use crate::paths::DataDir;

/// Opens the PostgreSQL database at `url`, or without one the data directory's SQLite file.
///
/// # Errors
/// The database cannot be opened, or it belongs to another data directory; the message has the remedy.
pub(crate) async fn open(data: &DataDir, url: Option<&str>) -> Result<Arc<dyn Store>, Failure> {
    let (sqlite_file, id_file) = (data.database(), data.database_id());
    let Some(url) = url else {
        if id_file.exists() {
            return Err(Failure::new(format!(
                "the records of {} are in a PostgreSQL database; start with --database, or choose another directory with \
                 --data-dir",
                data.data_dir.display()
            )));
        }
        return Ok(Arc::new(SqliteStore::open(&sqlite_file).await?));
    };
    if sqlite_file.exists() {
        return Err(Failure::new(format!(
            "there are records in {}, and PostgreSQL does not have them; choose another directory with --data-dir, or move \
             this file away to give up its sandboxes, templates and keys",
            sqlite_file.display()
        )));
    }
    let store = PostgresStore::open(url).await?;
    let fresh = ids::random_hex::<16>();
    let id = store.secret("database-id", fresh.as_bytes()).await?;
    let id = String::from_utf8_lossy(&id).into_owned();
    match fs::read_to_string(&id_file) {
        Ok(known) if known.trim() == id => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && id == fresh => fs::write(&id_file, &id)?,
        Ok(_) | Err(_) => {
            store.close().await;
            return Err(Failure::new(format!(
                "this database belongs to another data directory than {dir}: name its own with --data-dir, or give this \
                 one a database of its own; only if the directory is the right one: echo {id} > {id_file}",
                dir = data.data_dir.display(),
                id_file = id_file.display()
            )));
        }
    }
    Ok(Arc::new(store))
}
