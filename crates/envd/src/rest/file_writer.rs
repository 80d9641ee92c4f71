//! Writes an uploaded file to disk: pieces are gathered while the previous ones are written.
//! The file is opened together with its first write, so that a small file costs one switch of threads.
//! Watchers see the events always in this order: created, owner changed, written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use crate::filesystem::ops::error_text;
use crate::filesystem::{dirs, metadata, root_only};
use crate::identity::{Identity, is_denial};
use crate::rest::{RestError, acting};
use crate::users::User;

/// Number of bytes that are gathered before they are written.
const GATHERED: usize = 512 * 1024;

/// Destination and owner of an uploaded file.
#[derive(Debug)]
pub struct Target {
    /// Absolute path.
    pub path: PathBuf,
    /// The owner, with whose rights the file is opened.
    pub user: User,
    /// Directory below which no link is followed, and which the path must not leave.
    pub confined_to: Option<PathBuf>,
    /// Metadata, which replaces all earlier metadata.
    pub metadata: BTreeMap<String, String>,
    /// Announced size, if known, bytes.
    pub length: Option<u64>,
}

/// A file that is being uploaded.
#[derive(Debug)]
pub struct FileWriter {
    target: Arc<Target>,
    file: Option<Opened>,
    writing: Option<JoinHandle<Result<Opened, RestError>>>,
    gathered: Vec<Bytes>,
    size: usize,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// Whether the file is new.
    new: bool,
}

impl FileWriter {
    /// Makes a writer. The file is not touched before the first write.
    pub fn new(target: Target) -> Self {
        Self { target: Arc::new(target), file: None, writing: None, gathered: Vec::new(), size: 0 }
    }

    /// Adds the next bytes.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), RestError> {
        self.size += bytes.len();
        self.gathered.push(bytes);
        if self.size < GATHERED { Ok(()) } else { self.write().await }
    }

    /// Writes the rest. Creates the file even if it is empty.
    pub async fn finish(mut self) -> Result<(), RestError> {
        self.write().await?;
        self.finish_write().await
    }

    async fn finish_write(&mut self) -> Result<(), RestError> {
        if let Some(writing) = self.writing.take() {
            self.file = Some(writing.await??);
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), RestError> {
        self.finish_write().await?;
        let target = Arc::clone(&self.target);
        let (opened, gathered) = (self.file.take(), std::mem::take(&mut self.gathered));
        self.size = 0;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let mut opened = match opened {
                Some(opened) => opened,
                None => open(&target, gathered.iter().all(Bytes::is_empty))?,
            };
            match write_all(&mut opened.file, &gathered) {
                Ok(()) => Ok(opened),
                Err(error) => Err(write_error(&target, &mut opened, &error)),
            }
        }));
        Ok(())
    }
}

/// Writes all pieces with as few system calls as possible.
fn write_all(file: &mut File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens and truncates the file, and sets owner and metadata.
fn open(target: &Target, stays_empty: bool) -> Result<Opened, RestError> {
    let identity = Identity::of(&target.user);
    let prepare = |opened: &mut Opened| prepare(opened, target, stays_empty);
    let attempt = || {
        acting(&identity, || {
            let mut opened = open_as_user(target, &identity)?;
            give_to(&opened.file, &identity)?;
            prepare(&mut opened)?;
            Ok(opened)
        })
    };
    let denied = match attempt() {
        Err(error) if error.status == StatusCode::FORBIDDEN && target.confined_to.is_none() => error,
        result => return result,
    };
    // The user may not write there. A new file may still be created in some directories of root's.
    let path = &target.path;
    if let Some(parent) = path.parent()
        && dirs::ensure(parent, &identity)?
    {
        return attempt();
    }
    let file = root_only::create_file(path, &identity).ok_or(denied)?;
    let mut opened = Opened { file, new: true };
    acting(&identity, || prepare(&mut opened))?;
    Ok(opened)
}

/// Opens the file and creates it and its parents if they are missing, all with the rights of this thread.
fn open_as_user(target: &Target, identity: &Identity) -> Result<Opened, RestError> {
    let path = &target.path;
    let before = std::fs::metadata(path).ok();
    if before.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Err(RestError::bad_request(format!("path is a directory: {}", path.display())));
    }
    if let Some(parent) = path.parent() {
        dirs::create(parent, identity, target.confined_to.as_deref())?;
    }
    // Before the old contents are lost: refuse what cannot fit.
    let old = before.as_ref().map_or(0, std::fs::Metadata::len);
    if let Some(length) = target.length
        && room(path).is_some_and(|room| length > room.saturating_add(old))
    {
        return Err(no_space(Some(length)));
    }
    // Nonblocking: a pipe without a reader must not block a thread. Not truncated yet: it may be refused.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if target.confined_to.is_some() {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = flags.bits().cast_signed();
    let file =
        File::options().write(true).create(true).truncate(false).mode(0o666).custom_flags(flags).open(path);
    let file = file.map_err(|error| open_error(path, &error, identity))?;
    Ok(Opened { file, new: before.is_none() })
}

/// Makes the user the owner of a file. A file of somebody else that the user may write stays theirs.
fn give_to(file: &File, identity: &Identity) -> Result<(), RestError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    match rustix::fs::fchown(file, Some(uid), Some(gid)) {
        Err(error) if !is_denial(error) || identity.is_root() => {
            Err(RestError::internal(format!("error changing file ownership: {error}")))
        }
        _ => Ok(()),
    }
}

/// Truncates an opened file and sets its metadata.
fn prepare(opened: &mut Opened, target: &Target, stays_empty: bool) -> Result<(), RestError> {
    let (file, path) = (&opened.file, &target.path);
    let failed =
        |error: io::Error| RestError::internal(format!("error opening file: {}", error_text(&error)));
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(RestError::bad_request(format!("path is not a regular file: {}", path.display())));
    }
    if meta.len() > 0 {
        // Filesystems take a file that is truncated to 0 for one whose replacement must not be lost, and write all of it
        // to disk when it is closed. So it is truncated to 1 byte, which is overwritten at once.
        file.set_len(u64::from(!stays_empty)).map_err(failed)?;
    }
    metadata::replace(file, &target.metadata).map_err(|error| match error {
        Errno::NOSPC | Errno::DQUOT => no_space(None),
        error => RestError::internal(format!("error setting metadata: {error}")),
    })
}

/// Returns the free space of the filesystem that root may use, bytes.
fn room(path: &Path) -> Option<u64> {
    let fs = rustix::fs::statvfs(path.parent()?).ok()?;
    Some(fs.f_bfree.saturating_mul(fs.f_frsize))
}

fn open_error(path: &Path, error: &io::Error, identity: &Identity) -> RestError {
    match Errno::from_io_error(error) {
        Some(error) if is_denial(error) => {
            RestError::denied(&format!("error opening file '{}'", path.display()), identity)
        }
        Some(Errno::LOOP) => {
            RestError::bad_request(format!("path is a link, or has too many links: {}", path.display()))
        }
        Some(Errno::NOSPC | Errno::DQUOT) => RestError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("not enough inodes available: {}", error_text(error)),
        ),
        Some(Errno::ISDIR) => RestError::bad_request(format!("path is a directory: {}", path.display())),
        Some(Errno::NXIO) => {
            RestError::bad_request(format!("path is not a regular file: {}", path.display()))
        }
        Some(Errno::NAMETOOLONG) => {
            RestError::bad_request(format!("error opening file: {}", error_text(error)))
        }
        _ => RestError::internal(format!("error opening file: {}", error_text(error))),
    }
}

fn write_error(target: &Target, opened: &mut Opened, error: &io::Error) -> RestError {
    if opened.file.stream_position().is_ok_and(|position| position == 0) {
        // Nothing new was written. If this fails, the first error is still the one to report.
        let _ = opened.file.set_len(0);
    }
    if !matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT)) {
        return RestError::internal(format!("error writing file: {}", error_text(error)));
    }
    if opened.new {
        // The incomplete file would only take up space.
        let identity = Identity::of(&target.user);
        let _ = identity.run(|| std::fs::remove_file(&target.path));
    }
    no_space(target.length)
}

fn no_space(length: Option<u64>) -> RestError {
    let attempted = length.map(|length| format!("attempted to write {length} bytes: ")).unwrap_or_default();
    RestError::new(StatusCode::INSUFFICIENT_STORAGE, format!("{attempted}not enough disk space available"))
}
