//! Operations on single entries, and the texts of their errors.
//! All of them block: call them on a blocking thread.

use std::io::{self, ErrorKind};
use std::path::Path;

use connectrpc::ConnectError;
use envd_api::filesystem::EntryInfo;
use rustix::io::Errno;

use crate::filesystem::{dirs, entry, list};
use crate::users::{Names, User};

/// Describes an entry.
pub fn stat(path: &Path) -> Result<EntryInfo, ConnectError> {
    entry::describe(path, &Names::load()).map_err(|error| {
        let text = format!("lstat {}: {}", path.display(), error_text(&error));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                ConnectError::not_found(format!("file not found: {text}"))
            }
            _ => ConnectError::internal(format!("error getting file info: {text}")),
        }
    })
}

/// Lists a directory; depth 0 counts as 1.
pub fn list_dir(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, ConnectError> {
    let failed = |error: io::Error| {
        let text = format!("{}: {}", path.display(), error_text(&error));
        match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => ConnectError::failed_precondition(format!("path is a link loop: {text}")),
            Some(Errno::NOTDIR) => {
                ConnectError::invalid_argument(format!("path is not a directory: {}", path.display()))
            }
            _ if error.kind() == ErrorKind::NotFound => {
                ConnectError::not_found(format!("path not found: {text}"))
            }
            _ => ConnectError::internal(format!("error reading directory: {text}")),
        }
    };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Err(failed(Errno::NOTDIR.into()));
    }
    list::list(path, depth.max(1), &Names::load()).map_err(failed)
}

/// Creates a directory and its missing parents.
pub fn make_dir(path: &Path, user: &User) -> Result<EntryInfo, ConnectError> {
    let existing = |meta: std::fs::Metadata| {
        if meta.is_dir() {
            ConnectError::already_exists(format!("directory already exists: {}", path.display()))
        } else {
            let path = path.display();
            ConnectError::invalid_argument(format!("path already exists but it is not a directory: {path}"))
        }
    };
    if let Ok(meta) = std::fs::metadata(path) {
        return Err(existing(meta));
    }
    let new = dirs::ensure(path, user).map_err(|error| {
        let code = if error.is_full() { ConnectError::resource_exhausted } else { ConnectError::internal };
        code(format!("error creating directory: {error}"))
    })?;
    if !new {
        return Err(ConnectError::already_exists(format!("directory already exists: {}", path.display())));
    }
    stat(path)
}

/// Moves an entry and creates the missing parents of its destination.
pub fn move_entry(source: &Path, destination: &Path, user: &User) -> Result<EntryInfo, ConnectError> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => {
            ConnectError::not_found(format!("source file not found: {}", source.display()))
        }
        _ => ConnectError::internal(format!("error renaming: {}", error_text(&error))),
    };
    std::fs::symlink_metadata(source).map_err(failed)?;
    if let Some(parent) = destination.parent() {
        dirs::ensure(parent, user)
            .map_err(|error| ConnectError::internal(format!("error creating directory: {error}")))?;
    }
    std::fs::rename(source, destination).map_err(failed)?;
    stat(destination)
}

/// Removes an entry and all below it. Succeeds if it does not exist.
pub fn remove(path: &Path) -> Result<(), ConnectError> {
    let failed = |error: io::Error| {
        ConnectError::internal(format!("error removing file or directory: {}", error_text(&error)))
    };
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        other => other.map_err(failed),
    }
}

/// Returns the kernel's text of an error as clients expect it: in lower case and without a number.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}
