//! An uploaded file on its way to disk: received pieces are gathered while the ones before are written.
//! The file is opened together with its first write, so that a small one costs one switch of threads,
//! and the order of events a watcher sees is always: created, given to its user, written.

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

use crate::filesystem::ops::words;
use crate::filesystem::{dirs, metadata};
use crate::rest::RestError;
use crate::users::User;

/// Bytes gathered before they are written.
const GATHERED: usize = 512 * 1024;

/// What is being written where, and for whom.
#[derive(Debug)]
pub struct Target {
    /// Resolved.
    pub path: PathBuf,
    /// Becomes the owner.
    pub user: User,
    /// Replaces what the file had.
    pub metadata: BTreeMap<String, String>,
    /// Bytes announced, if they were.
    pub length: Option<u64>,
}

/// A file being uploaded.
#[derive(Debug)]
pub struct Sink {
    target: Arc<Target>,
    file: Option<Opened>,
    writing: Option<JoinHandle<Result<Opened, RestError>>>,
    gathered: Vec<Bytes>,
    size: usize,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// It was not there before.
    new: bool,
}

impl Sink {
    /// Nothing happens before the first write.
    pub fn new(target: Target) -> Self {
        Self { target: Arc::new(target), file: None, writing: None, gathered: Vec::new(), size: 0 }
    }

    /// Takes the next bytes.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), RestError> {
        self.size += bytes.len();
        self.gathered.push(bytes);
        if self.size < GATHERED { Ok(()) } else { self.write().await }
    }

    /// Writes what is left. An empty file is made, too.
    pub async fn finish(mut self) -> Result<(), RestError> {
        self.write().await?;
        self.settle().await
    }

    async fn settle(&mut self) -> Result<(), RestError> {
        if let Some(writing) = self.writing.take() {
            self.file = Some(writing.await??);
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), RestError> {
        self.settle().await?;
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

/// Writes all pieces with as few calls as they allow.
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

/// Opens it, empty or about to be written to.
fn open(target: &Target, stays_empty: bool) -> Result<Opened, RestError> {
    let path = &target.path;
    let before = std::fs::metadata(path).ok();
    if before.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Err(RestError::bad_request(format!("path is a directory: {}", path.display())));
    }
    if let Some(parent) = path.parent() {
        dirs::ensure(parent, &target.user)?;
    }
    // Before anything is lost: what cannot fit need not be tried.
    let old = before.as_ref().map_or(0, std::fs::Metadata::len);
    if let Some(length) = target.length
        && room(path).is_some_and(|room| length > room.saturating_add(old))
    {
        return Err(no_space(Some(length)));
    }
    // Without waiting: a pipe without a reader must not hold a thread. Not truncated yet: it may be refused.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file =
        File::options().write(true).create(true).truncate(false).mode(0o666).custom_flags(flags).open(path);
    let file = file.map_err(|error| open_error(path, &error))?;
    let failed = |error: io::Error| RestError::internal(format!("error opening file: {}", words(&error)));
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(RestError::bad_request(format!("path is not a regular file: {}", path.display())));
    }
    let (uid, gid) = (Uid::from_raw(target.user.uid), Gid::from_raw(target.user.gid));
    rustix::fs::fchown(&file, Some(uid), Some(gid))
        .map_err(|error| RestError::internal(format!("error changing file ownership: {error}")))?;
    if meta.len() > 0 {
        // File systems take a file cut to nothing for one that is replaced and must not be lost: they write out all of it when it is
        // closed. Its first byte comes at once.
        file.set_len(u64::from(!stays_empty)).map_err(failed)?;
    }
    metadata::replace(&file, &target.metadata).map_err(|error| match error {
        Errno::NOSPC | Errno::DQUOT => no_space(None),
        error => RestError::internal(format!("error setting metadata: {error}")),
    })?;
    Ok(Opened { file, new: before.is_none() })
}

/// Bytes that root may still write there.
fn room(path: &Path) -> Option<u64> {
    let fs = rustix::fs::statvfs(path.parent()?).ok()?;
    Some(fs.f_bfree.saturating_mul(fs.f_frsize))
}

fn open_error(path: &Path, error: &io::Error) -> RestError {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => RestError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("not enough inodes available: {}", words(error)),
        ),
        Some(Errno::ISDIR) => RestError::bad_request(format!("path is a directory: {}", path.display())),
        Some(Errno::NXIO) => {
            RestError::bad_request(format!("path is not a regular file: {}", path.display()))
        }
        Some(Errno::NAMETOOLONG) => RestError::bad_request(format!("error opening file: {}", words(error))),
        _ => RestError::internal(format!("error opening file: {}", words(error))),
    }
}

fn write_error(target: &Target, opened: &mut Opened, error: &io::Error) -> RestError {
    if opened.file.stream_position().is_ok_and(|position| position == 0) {
        // Nothing of it is the new one's. If this fails, the first failure is still the one to tell.
        let _ = opened.file.set_len(0);
    }
    if !matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT)) {
        return RestError::internal(format!("error writing file: {}", words(error)));
    }
    if opened.new {
        // A part of a file is worth less than the room it takes.
        let _ = std::fs::remove_file(&target.path);
    }
    no_space(target.length)
}

fn no_space(length: Option<u64>) -> RestError {
    let attempted = length.map(|length| format!("attempted to write {length} bytes: ")).unwrap_or_default();
    RestError::new(StatusCode::INSUFFICIENT_STORAGE, format!("{attempted}not enough disk space available"))
}
