//! `POST /files/compose`: joins files to one, in order, and deletes them.
//! The result is written to a temporary file beside its destination and renamed, so that it is never seen incomplete.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use http::{Response, StatusCode};
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::filesystem::dirs;
use crate::filesystem::ops::error_text;
use crate::identity::{Identity, is_denial};
use crate::rest::{Body, RestError, acting, json};
use crate::users::User;

/// The request's body.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// Files to join.
    #[serde(default)]
    pub source_paths: Vec<String>,
    /// Path of the result.
    #[serde(default)]
    pub destination: String,
    /// Owner of the result.
    pub username: Option<String>,
}

#[derive(Serialize)]
struct Composed {
    name: String,
    path: String,
    r#type: &'static str,
}

/// Joins `sources` into `destination`, with the rights of the user. Blocking.
pub fn compose(sources: &[PathBuf], destination: &Path, user: &User) -> Result<Response<Body>, RestError> {
    if sources.is_empty() {
        return Err(RestError::bad_request("source_paths must not be empty"));
    }
    let identity = Identity::of(user);
    let parent = destination.parent().unwrap_or(Path::new("/"));
    acting(&identity, || check(sources, destination, &identity))?;
    dirs::ensure(parent, &identity)?;
    acting(&identity, || replace(sources, parent, destination, &identity))?;
    Ok(json(&Composed {
        name: destination.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        path: destination.to_string_lossy().into_owned(),
        r#type: "file",
    }))
}

fn check(sources: &[PathBuf], destination: &Path, identity: &Identity) -> Result<(), RestError> {
    for source in sources {
        let shown = source.display();
        if source == destination {
            return Err(RestError::bad_request(format!(
                "source path is the same as the destination: {shown}"
            )));
        }
        match std::fs::metadata(source) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Err(RestError::bad_request(format!("source is not a regular file: {shown}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RestError::new(StatusCode::NOT_FOUND, format!("source file not found: {shown}")));
            }
            Err(error) => return Err(failed(&error, identity)),
        }
    }
    if destination.is_dir() {
        return Err(RestError::bad_request(format!("path is a directory: {}", destination.display())));
    }
    Ok(())
}

/// Writes the result, puts it in place, and deletes the sources.
fn replace(
    sources: &[PathBuf],
    parent: &Path,
    destination: &Path,
    identity: &Identity,
) -> Result<(), RestError> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|error| RestError::internal(error.to_string()))?;
    let temporary = parent.join(format!(".compose-{:016x}", u64::from_ne_bytes(random)));
    let joined = join(sources, &temporary, identity).and_then(|()| std::fs::rename(&temporary, destination));
    if let Err(error) = joined {
        let _ = std::fs::remove_file(&temporary);
        return Err(failed(&error, identity));
    }
    for source in sources {
        // The result is complete; a source that cannot be deleted is no failure.
        let _ = std::fs::remove_file(source);
    }
    Ok(())
}

fn join(sources: &[PathBuf], temporary: &Path, identity: &Identity) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(temporary)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(identity.uid)), Some(Gid::from_raw(identity.gid)))?;
    for source in sources {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut source = File::options().read(true).custom_flags(flags).open(source)?;
        // Copied by the kernel, where the filesystem supports it.
        io::copy(&mut source, &mut file)?;
    }
    Ok(())
}

fn failed(error: &io::Error, identity: &Identity) -> RestError {
    match Errno::from_io_error(error) {
        Some(error) if is_denial(error) => RestError::denied("error composing files", identity),
        Some(Errno::NOSPC | Errno::DQUOT) => {
            RestError::new(StatusCode::INSUFFICIENT_STORAGE, "not enough disk space available")
        }
        _ => RestError::internal(format!("error composing files: {}", error_text(error))),
    }
}
