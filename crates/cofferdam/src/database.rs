//! Which database the server's records are in: a file in the data directory, or PostgreSQL elsewhere.
//! Records and the directory's files belong together: a server that finds files without a record takes them for waste. So a directory
//! and a PostgreSQL database know each other, and neither is used with another.

use std::fs;
use std::io;
use std::sync::Arc;

use store::{PostgresStore, SqliteStore, Store};

use crate::failure::Failure;
use crate::paths::DataDir;

/// Opens the data directory's own database, or the one at `url`.
pub(crate) async fn open(data: &DataDir, url: Option<&str>) -> Result<Arc<dyn Store>, Failure> {
    let (own, note) = (data.database(), data.database_id());
    let Some(url) = url else {
        if note.exists() {
            return Err(Failure::new(format!(
                "the records of {} are in a PostgreSQL database; start with --database, or choose another directory with \
                 --data-dir",
                data.data_dir.display()
            )));
        }
        return Ok(Arc::new(SqliteStore::open(&own).await?));
    };
    if own.exists() {
        return Err(Failure::new(format!(
            "there are records in {}, and PostgreSQL does not have them; choose another directory with --data-dir, or move \
             this file away if its sandboxes, templates and keys shall be forgotten",
            own.display()
        )));
    }
    let store = PostgresStore::open(url).await?;
    let fresh = ids::random_hex::<16>();
    let id = store.secret("database-id", fresh.as_bytes()).await?;
    let id = String::from_utf8_lossy(&id).into_owned();
    match fs::read_to_string(&note) {
        Ok(known) if known.trim() == id => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && id == fresh => fs::write(&note, &id)?,
        Ok(_) | Err(_) => {
            store.close().await;
            return Err(Failure::new(format!(
                "this database belongs to another data directory than {dir}: name its own with --data-dir, or give this \
                 one a database of its own; only if the directory is the right one: echo {id} > {note}",
                dir = data.data_dir.display(),
                note = note.display()
            )));
        }
    }
    Ok(Arc::new(store))
}
