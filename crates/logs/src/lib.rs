//! Log lines of sandboxes and builds: the line and query types, the files they are kept in ([`LogStore`]), and a splitter that
//! turns a process's output into lines. There is one file per sandbox or build, in its team's directory, so that a search never
//! reads another team's lines. Lines from inside a sandbox are untrusted: callers limit their length and fields before storing them.
#![forbid(unsafe_code)]

mod lines;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use lines::LineSplitter;
pub use store::LogStore;

/// Field of a build's line that names the step it belongs to.
pub const STEP_FIELD: &str = "step";

/// Severity of a line, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Details for debugging.
    Debug,
    /// Normal events.
    Info,
    /// Something unexpected that did not stop the work.
    Warn,
    /// A failure.
    Error,
}

/// One log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Time, nanoseconds since 1970.
    pub at: i64,
    /// Severity.
    pub level: LogLevel,
    /// The component that wrote it.
    #[serde(default)]
    pub logger: String,
    /// The text.
    pub message: String,
    /// Structured fields.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    /// A line written now.
    #[must_use]
    pub fn now(level: LogLevel, logger: &str, message: &str, fields: BTreeMap<String, String>) -> Self {
        let at = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX);
        Self { at, level, logger: logger.to_owned(), message: message.to_owned(), fields }
    }

    /// Returns the time of the line.
    #[must_use]
    pub fn time(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.at.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Returns the build step that the line belongs to: `base`, `finalize` or the number of a step.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        self.fields.get(STEP_FIELD).map(String::as_str)
    }
}

/// Which lines to return. Times are nanoseconds since 1970, both ends included.
#[derive(Debug, Clone)]
pub struct LogQuery {
    /// Earliest time.
    pub from: i64,
    /// Latest time.
    pub to: i64,
    /// Descending by time instead of ascending.
    pub newest_first: bool,
    /// Lowest severity.
    pub level: LogLevel,
    /// Text that the message must contain, case-sensitive.
    pub search: Option<String>,
    /// Maximum number of lines.
    pub limit: usize,
}

impl LogQuery {
    /// Returns whether a line passes the filters.
    #[must_use]
    pub fn matches(&self, line: &LogLine) -> bool {
        (self.from..=self.to).contains(&line.at)
            && line.level >= self.level
            && self.search.as_ref().is_none_or(|part| line.message.contains(part.as_str()))
    }
}
