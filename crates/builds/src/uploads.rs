//! Receives archives. An archive is uploaded at one signed link, in one request or in several; a later request resumes an interrupted
//! upload.
//! A partial upload belongs to its link, because another client's archive of the same files may have different bytes. It is kept as
//! long as the link is valid. If two requests write to the same upload, the later one continues and the earlier one is stopped: the
//! server may not have noticed yet that the earlier connection is lost.
//! Protocol: resumable uploads of Google Cloud Storage (`Content-Range`, 308 and `Range`).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// How long a link is valid, and how long a partial upload is kept after its last byte.
pub(crate) const LINK_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Maximum size of an archive, bytes.
pub(crate) const MAX_ARCHIVE: u64 = 16 << 30;
/// Maximum size of all archives of a team, bytes; the least recently used ones are removed first.
const MAX_BYTES: u64 = 64 << 30;
/// Maximum number of partial uploads of a team.
const MAX_PARTS: usize = 64;
/// File name extension of partial uploads.
const PART: &str = "part";

/// Why an archive was not received.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The link was not signed by this server, or has expired.
    #[error("the upload link is not valid or has expired; ask for a new one")]
    Link,
    /// The archive is too large.
    #[error("the archive is larger than {} bytes; leave files out with .dockerignore", MAX_ARCHIVE)]
    TooLarge,
    /// The request ended before its body was complete.
    #[error("upload interrupted; query the offset and resume")]
    Incomplete,
    /// The range begins after the end of what was received.
    #[error("the range begins after the end of the upload: {0} bytes were received; resume at this offset")]
    Gap(u64),
    /// The body's length differs from the range's length.
    #[error("the body's length differs from Content-Range")]
    Length,
    /// Another request continues this upload.
    #[error("another request has taken over this upload")]
    TakenOver,
    /// The disk is full.
    #[error("the server's disk is full; the archive was not stored")]
    Full,
    /// The disk failed otherwise.
    #[error("failed to store the archive; see the server's log")]
    Io(io::Error),
}

impl From<io::Error> for UploadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(error),
        }
    }
}

/// How much of an archive has been uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadState {
    /// All of it.
    Complete,
    /// This many bytes from the beginning.
    Partial(u64),
}

/// The bytes of an archive that a request contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Number of bytes.
    pub length: u64,
    /// Length of the whole archive, if the client knows it.
    pub total: Option<u64>,
}

/// Uploads in progress, by the file that they write.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    writers: Arc<Mutex<HashMap<PathBuf, Writers>>>,
}

#[derive(Debug, Default)]
struct Writers {
    /// Requests that write or wait for their turn.
    count: usize,
    /// Cancelled to stop the last request.
    leave: CancellationToken,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The right to write to a file until another request claims it.
struct Turn {
    writers: Arc<Mutex<HashMap<PathBuf, Writers>>>,
    path: PathBuf,
    leave: CancellationToken,
}

impl Uploads {
    /// Joins the requests that write to a file, and tells the previous one to stop.
    fn join(&self, path: &Path) -> (Turn, Arc<tokio::sync::Mutex<()>>) {
        let mut writers = self.lock();
        let here = writers.entry(path.to_owned()).or_default();
        here.leave.cancel();
        here.leave = CancellationToken::new();
        here.count += 1;
        let turn =
            Turn { writers: Arc::clone(&self.writers), path: path.to_owned(), leave: here.leave.clone() };
        (turn, Arc::clone(&here.turn))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Writers>> {
        self.writers.lock()
    }

    fn is_written(&self, path: &Path) -> bool {
        self.lock().contains_key(path)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut writers = self.writers.lock();
        if let Some(here) = writers.get_mut(&self.path) {
            here.count -= 1;
            if here.count == 0 {
                writers.remove(&self.path);
            }
        }
    }
}

/// Returns the path of the partial upload of `path` at one link.
pub(crate) fn part(path: &Path, upload: &str) -> PathBuf {
    path.with_extension(format!("{upload}.{PART}"))
}

/// Returns how much of `path` has been uploaded at one link.
pub(crate) async fn state(path: &Path, upload: &str) -> UploadState {
    if let Ok(part) = tokio::fs::metadata(part(path, upload)).await {
        return UploadState::Partial(part.len());
    }
    let is_here = tokio::fs::try_exists(path).await.unwrap_or(false);
    if is_here { UploadState::Complete } else { UploadState::Partial(0) }
}

/// Receives bytes of the archive `path`; without a range, the whole archive. Bytes that were received before an error are kept.
pub(crate) async fn receive<E>(
    uploads: &Uploads,
    path: &Path,
    upload: &str,
    range: Option<UploadRange>,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<UploadState, UploadError> {
    let end = range.map(|range| range.total.unwrap_or(range.first.saturating_add(range.length)));
    if end.is_some_and(|end| end > MAX_ARCHIVE) {
        return Err(UploadError::TooLarge);
    }
    let new = part(path, upload);
    let (turn, order) = uploads.join(&new);
    let _alone = order.lock().await;
    let dir = path.parent().unwrap_or(Path::new("/"));
    tokio::fs::create_dir_all(dir).await?;
    make_room(uploads, dir, [path, &new]);
    let first = range.map_or(0, |range| range.first);
    let mut file =
        tokio::fs::File::options().create(true).append(false).write(true).truncate(false).open(&new).await?;
    let here = file.metadata().await?.len();
    if first > here {
        return Err(UploadError::Gap(here));
    }
    // Bytes that the client sends again replace those received before.
    file.set_len(first).await?;
    file.seek(io::SeekFrom::Start(first)).await?;
    let received = write(&mut file, first, range.map(|range| range.length), &turn.leave, body).await;
    file.flush().await?;
    let received = received?;
    let is_whole = range.is_none_or(|range| range.total == Some(received));
    if !is_whole {
        return Ok(UploadState::Partial(received));
    }
    file.sync_all().await?;
    tokio::fs::rename(&new, path).await?;
    Ok(UploadState::Complete)
}

/// Receives an archive in one request. After an error the file is incomplete and must not be used.
pub(crate) async fn receive_whole<E>(
    path: &Path,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<(), UploadError> {
    let mut file = tokio::fs::File::create(path).await?;
    write(&mut file, 0, None, &CancellationToken::new(), body).await?;
    file.flush().await?;
    Ok(file.sync_all().await?)
}

/// Appends a body of the announced length; returns the length of the file.
async fn write<E>(
    file: &mut tokio::fs::File,
    first: u64,
    length: Option<u64>,
    leave: &CancellationToken,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<u64, UploadError> {
    let mut size = first;
    let mut body = std::pin::pin!(body);
    loop {
        let piece = tokio::select! {
            biased;
            () = leave.cancelled() => return Err(UploadError::TakenOver),
            piece = body.next() => piece,
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|_| UploadError::Incomplete)?;
        size += piece.len() as u64;
        if size > MAX_ARCHIVE {
            return Err(UploadError::TooLarge);
        }
        if length.is_some_and(|length| size - first > length) {
            return Err(UploadError::Length);
        }
        file.write_all(&piece).await?;
    }
    match length {
        Some(length) if size - first != length => Err(UploadError::Length),
        _ => Ok(size),
    }
}

struct Kept {
    path: PathBuf,
    size: u64,
    used: SystemTime,
    is_part: bool,
}

fn kept(dir: &Path) -> Vec<Kept> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let describe = |entry: fs::DirEntry| {
        let data = entry.metadata().ok()?;
        let (path, used) = (entry.path(), data.modified().ok()?);
        let is_part = path.extension().is_some_and(|end| end == PART);
        Some(Kept { path, size: data.len(), used, is_part })
    };
    entries.filter_map(describe).collect()
}

/// Removes archives from a team's directory until one more fits into its limits. Files that are being written are kept.
pub(crate) fn make_room(uploads: &Uploads, dir: &Path, needed: [&Path; 2]) {
    let mut kept = kept(dir);
    kept.sort_by_key(|kept| kept.used);
    let mut bytes: u64 = kept.iter().map(|kept| kept.size).sum();
    let mut parts = kept.iter().filter(|kept| kept.is_part).count();
    for Kept { path, size, is_part, .. } in kept {
        let too_many = is_part && parts >= MAX_PARTS;
        let is_idle = !needed.contains(&path.as_path()) && !uploads.is_written(&path);
        if is_idle && (bytes > MAX_BYTES || too_many) && fs::remove_file(&path).is_ok() {
            bytes -= size;
            parts -= usize::from(is_part);
        }
    }
}

/// Removes partial uploads whose link has expired.
pub(crate) fn remove_expired_parts(dir: &Path, now: SystemTime) {
    let Some(before) = now.checked_sub(LINK_LIFETIME) else { return };
    for team in fs::read_dir(dir).into_iter().flatten().flatten() {
        for part in kept(&team.path()).into_iter().filter(|kept| kept.is_part && kept.used < before) {
            let _ = fs::remove_file(part.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    type Piece = Result<Bytes, ()>;

    fn body(text: &str) -> impl Stream<Item = Piece> + Send + use<> {
        stream::iter([Ok(Bytes::from(text.to_owned()))])
    }

    fn cut(text: &str) -> impl Stream<Item = Piece> + Send + use<> {
        stream::iter([Ok(Bytes::from(text.to_owned())), Err(())])
    }

    fn range(first: u64, length: u64, total: u64) -> Option<UploadRange> {
        Some(UploadRange { first, length, total: Some(total) })
    }

    struct Fixture {
        _dir: tempfile::TempDir,
        path: PathBuf,
        uploads: Uploads,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("team").join("hash");
            Self { path, _dir: dir, uploads: Uploads::default() }
        }

        async fn put(
            &self,
            range: Option<UploadRange>,
            body: impl Stream<Item = Piece> + Send,
        ) -> Result<UploadState, UploadError> {
            receive(&self.uploads, &self.path, "a", range, body).await
        }

        async fn state(&self, upload: &str) -> UploadState {
            state(&self.path, upload).await
        }
    }

    #[tokio::test]
    async fn an_upload_goes_on_where_it_broke_off() {
        let fixture = Fixture::new();
        assert_eq!(fixture.state("a").await, UploadState::Partial(0));
        assert!(matches!(fixture.put(None, cut("hello ")).await, Err(UploadError::Incomplete)));
        assert_eq!(fixture.state("a").await, UploadState::Partial(6));
        assert_eq!(fixture.state("b").await, UploadState::Partial(0), "parts belong to their addresses");
        assert!(matches!(fixture.put(range(7, 4, 11), body("orld")).await, Err(UploadError::Gap(6))));
        assert_eq!(fixture.put(range(6, 2, 11), body("wo")).await.unwrap(), UploadState::Partial(8));
        // An overlap is what a client sends whose last answer was lost.
        assert_eq!(fixture.put(range(4, 7, 11), body("o world")).await.unwrap(), UploadState::Complete);
        assert_eq!(fs::read_to_string(&fixture.path).unwrap(), "hello world");
        assert_eq!(fixture.state("a").await, UploadState::Complete);
        assert_eq!(fixture.state("b").await, UploadState::Complete);
        assert_eq!(fixture.put(None, body("anew")).await.unwrap(), UploadState::Complete);
        assert_eq!(fs::read_to_string(&fixture.path).unwrap(), "anew");
        assert!(fixture.uploads.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_announced_must_come() {
        let fixture = Fixture::new();
        for (length, text) in [(3, "four"), (5, "four")] {
            let put = fixture.put(range(0, length, 9), body(text)).await;
            assert!(matches!(put, Err(UploadError::Length)), "{put:?}");
        }
        let put = fixture.put(range(0, 1, MAX_ARCHIVE + 1), body("x")).await;
        assert!(matches!(put, Err(UploadError::TooLarge)));
        let unknown = Some(UploadRange { first: 0, length: 4, total: None });
        assert_eq!(fixture.put(unknown, body("four")).await.unwrap(), UploadState::Partial(4));
        assert_eq!(fixture.put(range(4, 0, 4), body("")).await.unwrap(), UploadState::Complete);
    }

    #[tokio::test]
    async fn a_newcomer_takes_over_from_one_that_hangs() {
        let fixture = Arc::new(Fixture::new());
        let (pieces, hanging) = tokio::sync::mpsc::unbounded_channel::<Piece>();
        let first = Arc::clone(&fixture);
        let hanging = stream::unfold(hanging, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
        let first = tokio::spawn(async move { first.put(None, hanging).await });
        pieces.send(Ok(Bytes::from_static(b"hel"))).unwrap();
        // It waits for more by now, or has not begun; either way it has to leave.
        while !fixture.uploads.is_written(&part(&fixture.path, "a")) {
            tokio::task::yield_now().await;
        }
        assert_eq!(fixture.put(range(0, 5, 5), body("hello")).await.unwrap(), UploadState::Complete);
        assert!(matches!(first.await.unwrap(), Err(UploadError::TakenOver)));
        assert_eq!(fs::read_to_string(&fixture.path).unwrap(), "hello");
    }

    #[test]
    fn parts_expire_and_are_bounded_in_number() {
        let dir = tempfile::tempdir().unwrap();
        let team = dir.path().join("team");
        fs::create_dir(&team).unwrap();
        let uploads = Uploads::default();
        let now = SystemTime::now();
        let add = |name: String, age: u64| {
            let file = fs::File::create(team.join(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        };
        add("whole".to_owned(), 100_000);
        for number in 0..MAX_PARTS as u64 + 3 {
            add(format!("x.{number}.{PART}"), number);
        }
        make_room(&uploads, &team, [&team.join("new"), &team.join("new.part")]);
        let parts = || kept(&team).into_iter().filter(|kept| kept.is_part).count();
        assert_eq!(parts(), MAX_PARTS - 1, "there is room for one more");
        assert!(team.join("x.0.part").exists() && !team.join("x.66.part").exists(), "the oldest go");
        remove_expired_parts(dir.path(), now + LINK_LIFETIME - Duration::from_secs(10));
        assert_eq!(parts(), 11);
        assert!(team.join("whole").exists());
    }
}
