//! [`BuildLog`]: the log of a build in progress, in memory. Readers ask for lines by how many they have seen, so lines never change
//! their order. Lines come from inside a sandbox: they are trimmed, blank ones dropped, and their number and length limited.

use logs::{LineSplitter, LogLevel, LogLine, STEP_FIELD};
use parking_lot::Mutex;

/// Maximum number of lines of one build; further ones are counted, and the count is logged at the end.
const MAX_LINES: usize = 50_000;
/// Maximum length of a line, bytes; longer ones are cut.
const MAX_LINE: usize = LineSplitter::MAX_LINE;

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
    pub(crate) fn add(&self, level: LogLevel, step: Option<&str>, message: impl AsRef<str>) {
        let message = message.as_ref().trim();
        if message.is_empty() {
            return;
        }
        let end =
            (0..=MAX_LINE.min(message.len())).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        let fields = step.map(|step| (STEP_FIELD.to_owned(), step.to_owned()));
        let line = LogLine::now(level, "build", &message[..end], fields.into_iter().collect());
        let mut lines = self.lines.lock();
        // Warnings and errors are kept beyond the limit: the last ones usually explain a failure.
        if lines.kept.len() >= MAX_LINES && level < LogLevel::Warn {
            lines.dropped += 1;
            return;
        }
        if lines.dropped > 0 {
            let text = format!("{} lines were left out", std::mem::take(&mut lines.dropped));
            lines.kept.push(LogLine { message: text, ..line.clone() });
        }
        lines.kept.push(line);
    }

    /// Returns all lines so far.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().kept.clone()
    }

    /// Returns lines of at least severity `level`, without the first `seen` of them.
    pub(crate) fn after(&self, level: LogLevel, seen: usize, limit: usize) -> Vec<LogLine> {
        let lines = self.lines.lock();
        lines.kept.iter().filter(|line| line.level >= level).skip(seen).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_continues_where_it_stopped() {
        let log = BuildLog::default();
        log.add(LogLevel::Info, Some("1"), " one ");
        log.add(LogLevel::Info, None, "  \n");
        log.add(LogLevel::Debug, None, "two");
        log.add(LogLevel::Warn, None, "x".repeat(MAX_LINE + 1));
        let texts = |level, seen, limit| -> Vec<String> {
            log.after(level, seen, limit).into_iter().map(|line| line.message).collect()
        };
        assert_eq!(texts(LogLevel::Debug, 0, 2), ["one", "two"]);
        assert_eq!(texts(LogLevel::Info, 1, 9)[0].len(), MAX_LINE);
        assert!(texts(LogLevel::Debug, 3, 9).is_empty());
    }

    #[test]
    fn lines_over_the_limit_are_counted_and_the_end_is_kept() {
        let log = BuildLog::default();
        for _ in 0..MAX_LINES + 7 {
            log.add(LogLevel::Info, None, "x");
        }
        log.add(LogLevel::Error, None, "the end");
        let lines = log.lines();
        assert_eq!(lines.len(), MAX_LINES + 2);
        assert_eq!(lines[MAX_LINES].message, "7 lines were left out");
        assert_eq!(lines[MAX_LINES + 1].message, "the end");
    }
}
