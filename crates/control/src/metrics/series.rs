//! Time series on disk: fixed-size records, appended; one file a sandbox and one a team.
//! Not in the database: hundreds of rows a second would stand in the way of creates at its one writer.
//! A crash costs what was not written yet; a torn record is cut off or skipped. All calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ids::{SandboxId, TeamId};

/// Ending of the files; no id holds a dot.
const ENDING: &str = "series";
/// Name of a team's own file.
const TEAM: &str = "team.series";
/// How much older than it must be the oldest record may get before a file is rewritten.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// Something with a time and a fixed size.
pub(super) trait Record: Sized {
    /// Bytes of one.
    const SIZE: usize;
    /// When, seconds since 1970.
    fn at(&self) -> i64;
    /// Its bytes.
    fn put(&self, out: &mut Vec<u8>);
    /// From its bytes; none when they are damaged.
    fn take(bytes: &[u8]) -> Option<Self>;
}

/// A checksum that zeroes, which a power cut leaves behind, do not pass.
pub(super) fn check(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0x5eed, |sum: u16, byte| sum.rotate_left(3) ^ u16::from(*byte))
}

/// The directory of all series.
#[derive(Debug)]
pub(crate) struct Shelf {
    root: PathBuf,
    /// Held while files change, so that none is appended to while it is rewritten.
    changing: Mutex<()>,
}

impl Shelf {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, changing: Mutex::default() }
    }

    pub(super) fn of_sandbox(&self, team: TeamId, id: &SandboxId) -> PathBuf {
        self.root.join(team.to_string()).join(format!("{id}.{ENDING}"))
    }

    pub(super) fn of_team(&self, team: TeamId) -> PathBuf {
        self.root.join(team.to_string()).join(TEAM)
    }

    /// Adds records to a file. A full disk costs records, never a sandbox.
    pub(super) fn append<R: Record>(&self, path: &Path, records: &[R]) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = append(path, records) {
            tracing::warn!(path = %path.display(), %error, "metrics were lost");
        }
    }

    /// Removes what is older than `keep`.
    pub(crate) fn forget(&self, keep: Duration) {
        let Some(oldest) = SystemTime::now().checked_sub(keep) else { return };
        for team in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            for entry in fs::read_dir(team.path()).into_iter().flatten().flatten() {
                if let Err(error) = self.forget_in(&entry.path(), oldest) {
                    tracing::warn!(path = %entry.path().display(), %error, "old metrics were not removed");
                }
            }
            // Succeeds when it is empty.
            let _ = fs::remove_dir(team.path());
        }
    }

    fn forget_in(&self, path: &Path, oldest: SystemTime) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Hands every whole record to `look`, in the order they were written. A file that is not there has none.
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

/// Time of the first record, if there is one.
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

/// Rewrites a file without its old records once there are many of them.
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
    let new = path.with_extension("new");
    io::copy(&mut file, &mut File::create(&new)?)?;
    fs::rename(new, path)
}
