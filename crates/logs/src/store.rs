//! [`LogStore`]: one file of JSON lines per sandbox or build, appended to, and cut to its newer half when it grows too large.
//! A line torn by a crash is ignored when the file is read. All calls block.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ids::TeamId;
use parking_lot::Mutex;

use super::{LogLine, LogQuery};

/// Size in bytes at which a file loses its older half.
const MAX_FILE: u64 = 4 << 20;

/// Log files below one directory. `id` is that of a sandbox or a build.
#[derive(Debug)]
pub struct LogStore {
    root: PathBuf,
    /// Held while a file is cut, so that no line is appended to the replaced file.
    cutting: Mutex<()>,
}

impl LogStore {
    /// A store below `root`, which is created with the first line.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, cutting: Mutex::default() }
    }

    fn path(&self, team: TeamId, id: &str) -> PathBuf {
        self.root.join(team.to_string()).join(format!("{id}.ndjson"))
    }

    /// Appends lines to a file. Lines that cannot be written, for example to a full disk, are dropped with a warning.
    pub fn append(&self, team: TeamId, id: &str, lines: &[LogLine]) {
        if let Err(error) = self.try_append(team, id, lines) {
            tracing::warn!(log = id, team_id = %team, %error, "failed to write log lines");
        }
    }

    fn try_append(&self, team: TeamId, id: &str, lines: &[LogLine]) -> io::Result<()> {
        let path = self.path(team, id);
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let _no_cut = self.cutting.lock();
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
                open()?
            }
            opened => opened?,
        };
        file.write_all(&text)?;
        if file.metadata()?.len() > MAX_FILE {
            let content = fs::read(&path)?;
            let half = content.len() / 2;
            let newline = content[half..].iter().position(|byte| *byte == b'\n');
            let start = newline.map_or(content.len(), |at| half + at + 1);
            fs_atomic::write(&path, &content[start..], fs_atomic::Options::default())?;
        }
        Ok(())
    }

    /// Returns the lines that match a query, in the query's order. An unknown id has none.
    #[must_use]
    pub fn read(&self, team: TeamId, id: &str, query: &LogQuery) -> Vec<LogLine> {
        let Ok(file) = File::open(self.path(team, id)) else { return Vec::new() };
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
        let matching =
            lines.filter_map(|line| serde_json::from_slice(&line).ok()).filter(|line| query.matches(line));
        if !query.newest_first {
            // Lines of two sources may be some milliseconds out of order.
            let mut found: Vec<LogLine> = matching.collect();
            found.sort_by_key(|line| line.at);
            found.truncate(query.limit);
            return found;
        }
        let mut newest = VecDeque::new();
        for line in matching {
            newest.push_back(line);
            if newest.len() > query.limit {
                newest.pop_front();
            }
        }
        let mut found: Vec<LogLine> = newest.into();
        found.sort_by_key(|line| std::cmp::Reverse(line.at));
        found
    }

    /// Removes files that have not been appended to for `retention`.
    pub fn forget(&self, retention: Duration) {
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
    use crate::LogLevel;

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
    fn lines_are_found_by_time_level_and_text_in_both_directions() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::new(dir.path().to_owned());
        let (team, id) = (TeamId::generate(), "isandbox");
        let lines = [
            line(1, LogLevel::Info, "one"),
            line(2, LogLevel::Debug, "two"),
            line(3, LogLevel::Warn, "three"),
        ];
        store.append(team, id, &lines[..2]);
        store.append(team, id, &lines[2..]);
        assert_eq!(store.read(team, id, &query()), lines);
        let at = |query: LogQuery| store.read(team, id, &query).iter().map(|l| l.at).collect::<Vec<_>>();
        assert_eq!(at(LogQuery { newest_first: true, limit: 2, ..query() }), [3, 2]);
        assert_eq!(at(LogQuery { from: 2, ..query() }), [2, 3]);
        assert_eq!(at(LogQuery { level: LogLevel::Info, ..query() }), [1, 3]);
        assert_eq!(at(LogQuery { search: Some("t".into()), ..query() }), [2, 3]);
        assert!(store.read(TeamId::generate(), id, &query()).is_empty(), "another team sees the lines");
        store.forget(Duration::ZERO);
        assert!(at(query()).is_empty());
    }

    #[test]
    fn a_file_stays_within_its_limit_and_keeps_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::new(dir.path().to_owned());
        let (team, id) = (TeamId::generate(), "isandbox");
        let long = "x".repeat(100_000);
        for at in 0..100 {
            store.append(team, id, &[line(at, LogLevel::Info, &long)]);
        }
        assert!(fs::metadata(store.path(team, id)).unwrap().len() <= MAX_FILE);
        let newest = LogQuery { newest_first: true, limit: 1, ..query() };
        assert_eq!(store.read(team, id, &newest)[0].at, 99);
    }
}
