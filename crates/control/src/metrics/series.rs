//! [`SeriesStore`]: time series on disk, one file per sandbox and one per team, to which fixed-size records are appended.
//! They are not in the database, where hundreds of rows per second would delay creates at its single writer.
//! A crash loses samples that were not written yet; a torn record is cut off or skipped. All calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ids::{SandboxId, TeamId};
use parking_lot::Mutex;

/// File name extension; ids contain no dot.
const EXTENSION: &str = "series";
/// Name of the file of a team's own series.
const TEAM: &str = "team.series";
/// How much older than the retention the oldest record may get before a file is rewritten without old records.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// A record of fixed size with a time.
pub(super) trait Record: Sized {
    /// Size of a record, bytes.
    const SIZE: usize;
    /// Returns its time, seconds since 1970.
    fn at(&self) -> i64;
    /// Appends its bytes to `out`.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it from its bytes; returns none if they are damaged.
    fn take(bytes: &[u8]) -> Option<Self>;
}

/// Returns a checksum. Zeroes, which a power failure may leave, do not pass.
pub(super) fn check(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0x5eed, |sum: u16, byte| sum.rotate_left(3) ^ u16::from(*byte))
}

/// The files of all series.
#[derive(Debug)]
pub(crate) struct SeriesStore {
    root: PathBuf,
    /// Held while a file changes, so that none is appended to while it is rewritten.
    changing: Mutex<()>,
}

impl SeriesStore {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, changing: Mutex::default() }
    }

    pub(super) fn of_sandbox(&self, team: TeamId, id: &SandboxId) -> PathBuf {
        self.root.join(team.to_string()).join(format!("{id}.{EXTENSION}"))
    }

    pub(super) fn of_team(&self, team: TeamId) -> PathBuf {
        self.root.join(team.to_string()).join(TEAM)
    }

    /// Appends records to a file. Records that cannot be written are dropped with a warning.
    pub(super) fn append<R: Record>(&self, path: &Path, records: &[R]) {
        let _changing = self.changing.lock();
        if let Err(error) = append(path, records) {
            tracing::warn!(path = %path.display(), %error, "failed to write metrics");
        }
    }

    /// Removes records and files older than `keep`.
    pub(crate) fn forget(&self, keep: Duration) {
        let Some(oldest) = SystemTime::now().checked_sub(keep) else { return };
        for team in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            for entry in fs::read_dir(team.path()).into_iter().flatten().flatten() {
                if let Err(error) = self.forget_in(&entry.path(), oldest) {
                    tracing::warn!(path = %entry.path().display(), %error, "failed to remove old metrics");
                }
            }
            // Fails unless the directory is empty.
            let _ = fs::remove_dir(team.path());
        }
    }

    fn forget_in(&self, path: &Path, oldest: SystemTime) -> io::Result<()> {
        let _changing = self.changing.lock();
        if fs::metadata(path)?.modified()? < oldest {
            return fs::remove_file(path);
        }
        if path.ends_with(TEAM) {
            return trim::<super::TeamSample>(path, oldest);
        }
        trim::<super::Sample>(path, oldest)
    }
}

fn append<R: Record>(path: &Path, records: &[R]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(records.len() * R::SIZE);
    for record in records {
        record.put(&mut bytes);
    }
    let open = || OpenOptions::new().create(true).append(true).open(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            open()?
        }
        other => other?,
    };
    let torn = file.metadata()?.len() % R::SIZE as u64;
    if torn > 0 {
        file.set_len(file.metadata()?.len() - torn)?;
    }
    file.write_all(&bytes)
}

/// Calls `look` with every complete record, in the order of writing. A missing file has none.
pub(super) fn each<R: Record>(path: &Path, mut look: impl FnMut(R)) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut bytes = vec![0; R::SIZE];
    loop {
        match reader.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Some(record) = R::take(&bytes) {
            look(record);
        }
    }
}

/// Returns the time of the first record.
pub(super) fn first_at<R: Record>(path: &Path) -> Option<i64> {
    let mut bytes = vec![0; R::SIZE];
    let mut file = File::open(path).ok()?;
    loop {
        file.read_exact(&mut bytes).ok()?;
        if let Some(record) = R::take(&bytes) {
            return Some(record.at());
        }
    }
}

/// Rewrites a file without its old records once they are much older than `oldest`.
fn trim<R: Record>(path: &Path, oldest: SystemTime) -> io::Result<()> {
    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let oldest = i64::try_from(seconds(oldest)).unwrap_or(i64::MAX);
    let slack = i64::try_from(SLACK.as_secs()).unwrap_or(0);
    if first_at::<R>(path).is_none_or(|first| first >= oldest - slack) {
        return Ok(());
    }
    let mut keep_from = 0u64;
    let mut file = File::open(path)?;
    let mut bytes = vec![0; R::SIZE];
    while file.read_exact(&mut bytes).is_ok() && R::take(&bytes).is_none_or(|record| record.at() < oldest) {
        keep_from += R::SIZE as u64;
    }
    file.seek(SeekFrom::Start(keep_from))?;
    fs_atomic::write_with(path, fs_atomic::Options::default(), |new| io::copy(&mut file, new).map(drop))
}
