//! Log files, one a sandbox or build: JSON lines, appended, cut to their newer half when they grow too large.
//! A line is whole or ignored: a crash in mid-write costs that line alone.
//! All calls block; they are made from blocking threads.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ids::TeamId;

use super::{LogLine, LogQuery};

/// Size at which a file loses its older half.
const LARGEST: u64 = 4 << 20;

/// The files of all sandboxes.
#[derive(Debug)]
pub(crate) struct Book {
    root: PathBuf,
    /// Held while a file is cut, so that no line is appended to the old one.
    cutting: Mutex<()>,
}

impl Book {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, cutting: Mutex::default() }
    }

    fn path(&self, team: TeamId, id: &str) -> PathBuf {
        self.root.join(team.to_string()).join(format!("{id}.ndjson"))
    }

    /// Adds lines; a full disk costs lines, never a sandbox.
    pub(crate) fn append(&self, team: TeamId, id: &str, lines: &[LogLine]) {
        if let Err(error) = self.try_append(team, id, lines) {
            tracing::warn!(%id, %error, "log lines were lost");
        }
    }

    fn try_append(&self, team: TeamId, id: &str, lines: &[LogLine]) -> io::Result<()> {
        let path = self.path(team, id);
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let _whole = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
                open()?
            }
            answer => answer?,
        };
        file.write_all(&text)?;
        if file.metadata()?.len() > LARGEST {
            let content = fs::read(&path)?;
            let half = content.len() / 2;
            let start = content[half..]
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(content.len(), |at| half + at + 1);
            let new = path.with_extension("new");
            fs::write(&new, &content[start..])?;
            fs::rename(new, &path)?;
        }
        Ok(())
    }

    /// The lines that a query wants, in the order it wants them.
    pub(crate) fn read(&self, team: TeamId, id: &str, query: &LogQuery) -> Vec<LogLine> {
        let Ok(file) = File::open(self.path(team, id)) else { return Vec::new() };
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
        let wanted =
            lines.filter_map(|line| serde_json::from_slice(&line).ok()).filter(|line| query.wants(line));
        if !query.newest_first {
            // Lines of two sources may be some milliseconds out of order.
            let mut found: Vec<LogLine> = wanted.collect();
            found.sort_by_key(|line| line.at);
            found.truncate(query.limit);
            return found;
        }
        let mut newest = VecDeque::new();
        for line in wanted {
            newest.push_back(line);
            if newest.len() > query.limit {
                newest.pop_front();
            }
        }
        let mut found: Vec<LogLine> = newest.into();
        found.sort_by_key(|line| std::cmp::Reverse(line.at));
        found
    }

    /// Removes files that nobody has added to for so long.
    pub(crate) fn forget(&self, retention: Duration) {
        let Some(before) = SystemTime::now().checked_sub(retention) else { return };
        let dirs = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for file in dirs.filter_map(|team| fs::read_dir(team.path()).ok()).flatten().flatten() {
            let is_old = file.metadata().and_then(|data| data.modified()).is_ok_and(|at| at < before);
            if is_old {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::LogLevel;

    fn line(at: i64, level: LogLevel, message: &str) -> LogLine {
        LogLine { at, level, logger: "t".into(), message: message.into(), fields: Default::default() }
    }

    fn query() -> LogQuery {
        LogQuery {
            from: 0,
            to: i64::MAX,
            newest_first: false,
            level: LogLevel::Debug,
            search: None,
            limit: 1000,
        }
    }

    #[test]
    fn finds_by_time_level_and_text_in_both_directions() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path().to_owned());
        let (team, id) = (TeamId::generate(), "isandbox");
        let lines = [
            line(1, LogLevel::Info, "one"),
            line(2, LogLevel::Debug, "two"),
            line(3, LogLevel::Warn, "three"),
        ];
        book.append(team, id, &lines[..2]);
        book.append(team, id, &lines[2..]);
        assert_eq!(book.read(team, id, &query()), lines);
        let at = |query: LogQuery| book.read(team, id, &query).iter().map(|l| l.at).collect::<Vec<_>>();
        assert_eq!(at(LogQuery { newest_first: true, limit: 2, ..query() }), [3, 2]);
        assert_eq!(at(LogQuery { from: 2, ..query() }), [2, 3]);
        assert_eq!(at(LogQuery { level: LogLevel::Info, ..query() }), [1, 3]);
        assert_eq!(at(LogQuery { search: Some("t".into()), ..query() }), [2, 3]);
        assert!(book.read(TeamId::generate(), id, &query()).is_empty(), "another team sees the lines");
        book.forget(Duration::ZERO);
        assert!(at(query()).is_empty());
    }

    #[test]
    fn a_file_never_grows_past_its_limit_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path().to_owned());
        let (team, id) = (TeamId::generate(), "isandbox");
        let long = "x".repeat(100_000);
        for at in 0..100 {
            book.append(team, id, &[line(at, LogLevel::Info, &long)]);
        }
        assert!(fs::metadata(book.path(team, id)).unwrap().len() <= LARGEST);
        let newest = LogQuery { newest_first: true, limit: 1, ..query() };
        assert_eq!(book.read(team, id, &newest)[0].at, 99);
    }
}
