//! Operations on single entries, and the texts of their errors.
//! All of them block: call them on a blocking thread. They act with the rights of the user that they are given.

use std::io::{self, ErrorKind};
use std::path::Path;

use connectrpc::ConnectError;
use envd_api::filesystem::EntryInfo;
use rustix::io::Errno;

use crate::filesystem::{dirs, entry, list, root_only};
use crate::identity::Identity;
use crate::users::Names;

/// Runs an operation with the rights of a user.
pub fn acting<T>(
    identity: &Identity,
    operation: impl FnOnce() -> Result<T, ConnectError>,
) -> Result<T, ConnectError> {
    let failed = |error| ConnectError::internal(format!("cannot act as '{}': {error}", identity.name));
    identity.run(operation).map_err(failed)?
}

/// The error for a user who lacks a right. `attempt` says what was tried, and on what.
pub fn denied(attempt: &str, identity: &Identity) -> String {
    format!("{attempt}: permission denied for user '{}'", identity.name)
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

/// Describes an entry.
pub fn stat(path: &Path, identity: &Identity) -> Result<EntryInfo, ConnectError> {
    acting(identity, || describe(path, identity))
}

fn describe(path: &Path, identity: &Identity) -> Result<EntryInfo, ConnectError> {
    entry::describe(path, &Names::load()).map_err(|error| {
        let text = format!("lstat {}: {}", path.display(), error_text(&error));
        match error.kind() {
            ErrorKind::PermissionDenied => {
                ConnectError::permission_denied(denied(&format!("lstat {}", path.display()), identity))
            }
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                ConnectError::not_found(format!("file not found: {text}"))
            }
            _ => ConnectError::internal(format!("error getting file info: {text}")),
        }
    })
}

/// Lists a directory; depth 0 counts as 1.
pub fn list_dir(path: &Path, depth: u32, identity: &Identity) -> Result<Vec<EntryInfo>, ConnectError> {
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
            _ if is_denied(&error) => {
                let attempt = format!("error reading directory: {}", path.display());
                ConnectError::permission_denied(denied(&attempt, identity))
            }
            _ => ConnectError::internal(format!("error reading directory: {text}")),
        }
    };
    acting(identity, || {
        if !std::fs::metadata(path).map_err(failed)?.is_dir() {
            return Err(failed(Errno::NOTDIR.into()));
        }
        list::list(path, depth.max(1), &Names::load()).map_err(failed)
    })
}

/// Creates a directory and its missing parents.
pub fn make_dir(path: &Path, identity: &Identity) -> Result<EntryInfo, ConnectError> {
    let existing = |meta: std::fs::Metadata| {
        if meta.is_dir() {
            ConnectError::already_exists(format!("directory already exists: {}", path.display()))
        } else {
            let path = path.display();
            ConnectError::invalid_argument(format!("path already exists but it is not a directory: {path}"))
        }
    };
    acting(identity, || std::fs::metadata(path).map_or(Ok(()), |meta| Err(existing(meta))))?;
    if !ensure(path, identity)? {
        return Err(ConnectError::already_exists(format!("directory already exists: {}", path.display())));
    }
    stat(path, identity)
}

fn ensure(path: &Path, identity: &Identity) -> Result<bool, ConnectError> {
    dirs::ensure(path, identity).map_err(|error| {
        let text = format!("error creating directory: {error}");
        if error.is_full() {
            ConnectError::resource_exhausted(text)
        } else if error.is_denied() {
            ConnectError::permission_denied(format!("{text}, for user '{}'", identity.name))
        } else {
            ConnectError::internal(text)
        }
    })
}

/// Moves an entry and creates the missing parents of its destination.
pub fn move_entry(source: &Path, destination: &Path, identity: &Identity) -> Result<EntryInfo, ConnectError> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => {
            ConnectError::not_found(format!("source file not found: {}", source.display()))
        }
        ErrorKind::PermissionDenied => {
            let attempt = format!("error renaming {} to {}", source.display(), destination.display());
            ConnectError::permission_denied(denied(&attempt, identity))
        }
        _ => ConnectError::internal(format!("error renaming: {}", error_text(&error))),
    };
    acting(identity, || std::fs::symlink_metadata(source).map(drop).map_err(failed))?;
    if let Some(parent) = destination.parent() {
        ensure(parent, identity)?;
    }
    let renamed = acting(identity, || Ok(std::fs::rename(source, destination)))?;
    match renamed {
        Err(error) if is_denied(&error) && root_only::rename(source, destination, identity) => {}
        renamed => renamed.map_err(failed)?,
    }
    stat(destination, identity)
}

/// Removes an entry and all below it, however deep. Succeeds if it does not exist.
pub fn remove(path: &Path, identity: &Identity) -> Result<(), ConnectError> {
    let failed = |error: io::Error| {
        let attempt = "error removing file or directory";
        if is_denied(&error) {
            let attempt = format!("{attempt} {}", path.display());
            return ConnectError::permission_denied(denied(&attempt, identity));
        }
        ConnectError::internal(format!("{attempt}: {}", error_text(&error)))
    };
    match acting(identity, || Ok(walk::remove(path)))? {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        // Of a directory in a directory of root's, the contents are gone by now.
        Err(error) if is_denied(&error) && root_only::remove(path, identity) => Ok(()),
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
