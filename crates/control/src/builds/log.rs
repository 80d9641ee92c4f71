//! What a build says, line by line: in memory while it runs, in a file for as long as logs are kept.
//! A reader asks by how many lines it has seen already, so lines of a build never change their order.
//! Lines are trimmed, blank ones dropped, and their number and length bounded: they come from inside a sandbox.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::Directories;
use crate::logs::Book;
use crate::{LogLevel, LogLine};

/// Most lines of one build; the rest is counted and said at the end.
const MOST: usize = 50_000;
/// Longest line, bytes.
const LONGEST: usize = 16 << 10;
/// Field that names a line's step.
pub(super) const STEP: &str = "step";

/// Where logs of builds that have ended are.
pub(super) fn book(dirs: &Directories) -> Book {
    Book::new(dirs.logs())
}

/// The log of one build.
#[derive(Debug, Default)]
pub(crate) struct BuildLog {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: Vec<LogLine>,
    dropped: usize,
}

impl BuildLog {
    /// Adds a line.
    pub(crate) fn say(&self, level: LogLevel, step: Option<&str>, message: impl AsRef<str>) {
        let message = message.as_ref().trim();
        if message.is_empty() {
            return;
        }
        let end =
            (0..=LONGEST.min(message.len())).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let fields = step.map(|step| (STEP.to_owned(), step.to_owned()));
        let line = LogLine {
            at: i64::try_from(now).unwrap_or(i64::MAX),
            level,
            logger: "build".to_owned(),
            message: message[..end].to_owned(),
            fields: fields.into_iter().collect::<BTreeMap<_, _>>(),
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // The last words matter more than the flood before them.
        if lines.kept.len() >= MOST && level < LogLevel::Warn {
            lines.dropped += 1;
            return;
        }
        if lines.dropped > 0 {
            let text = format!("{} lines were left out", std::mem::take(&mut lines.dropped));
            lines.kept.push(LogLine { message: text, ..line.clone() });
        }
        lines.kept.push(line);
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).kept.clone()
    }

    /// Lines that matter at least as much as `level`, after the first `seen` of them.
    pub(crate) fn after(&self, level: LogLevel, seen: usize, limit: usize) -> Vec<LogLine> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.kept.iter().filter(|line| line.level >= level).skip(seen).take(limit).cloned().collect()
    }
}

/// Cuts a process's output into lines, whatever the pieces are that it comes in.
#[derive(Debug, Default)]
pub(crate) struct LineCutter {
    rest: Vec<u8>,
}

impl LineCutter {
    /// Takes a piece and hands on the lines that are complete.
    pub(crate) fn push(&mut self, piece: &[u8], mut line: impl FnMut(&str)) {
        self.rest.extend_from_slice(piece);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            line(&String::from_utf8_lossy(&self.rest[start..start + length]));
            start += length + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > LONGEST {
            self.finish(line);
        }
    }

    /// Hands on what has no end of line.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(&str)) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            line(&String::from_utf8_lossy(&rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut cutter = LineCutter::default();
        let mut seen = Vec::new();
        for piece in [&b"on"[..], b"e\ntwo\n\xc3", b"\xa9\nlast"] {
            cutter.push(piece, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two", "é"]);
        cutter.finish(|line| seen.push(line.to_owned()));
        assert_eq!(seen.last().unwrap(), "last");
    }

    #[test]
    fn a_reader_goes_on_where_it_stopped() {
        let log = BuildLog::default();
        log.say(LogLevel::Info, Some("1"), " one ");
        log.say(LogLevel::Info, None, "  \n");
        log.say(LogLevel::Debug, None, "two");
        log.say(LogLevel::Warn, None, "x".repeat(LONGEST + 1));
        let texts = |level, seen, limit| -> Vec<String> {
            log.after(level, seen, limit).into_iter().map(|line| line.message).collect()
        };
        assert_eq!(texts(LogLevel::Debug, 0, 2), ["one", "two"]);
        assert_eq!(texts(LogLevel::Info, 1, 9)[0].len(), LONGEST);
        assert!(texts(LogLevel::Debug, 3, 9).is_empty());
    }

    #[test]
    fn a_flood_is_counted_and_the_end_is_kept() {
        let log = BuildLog::default();
        for _ in 0..MOST + 7 {
            log.say(LogLevel::Info, None, "x");
        }
        log.say(LogLevel::Error, None, "the end");
        let lines = log.lines();
        assert_eq!(lines.len(), MOST + 2);
        assert_eq!(lines[MOST].message, "7 lines were left out");
        assert_eq!(lines[MOST + 1].message, "the end");
    }
}
