//! Logs of sandboxes: lines from each sandbox's agent and of the control plane itself, kept for days and searched on request.
//! One file a sandbox, in its team's directory, so no search ever sees another team's lines. Size is bounded: the older half goes.
//! What an agent says is data from inside a sandbox: length, fields and time are limited before anything is kept.

mod book;
mod follow;

use std::collections::BTreeMap;

use ids::{SandboxId, TeamId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Control;
use crate::sandboxes::running::Live;

pub(crate) use book::Book;

/// How much a line matters; the order is from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everyday detail.
    Debug,
    /// What one wants to see.
    Info,
    /// What one should see.
    Warn,
    /// What went wrong.
    Error,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, nanoseconds since 1970.
    pub at: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// Which part said so.
    #[serde(default)]
    pub logger: String,
    /// What happened.
    pub message: String,
    /// Its particulars.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    /// When, as a time.
    #[must_use]
    pub fn time(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.at.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Which lines are wanted. Times are nanoseconds since 1970, both ends included.
#[derive(Debug, Clone)]
pub struct LogQuery {
    /// Not before.
    pub from: i64,
    /// Not after.
    pub to: i64,
    /// From the newest back instead of from the oldest on.
    pub newest_first: bool,
    /// Not less important than this.
    pub level: LogLevel,
    /// Part of the message, as written.
    pub search: Option<String>,
    /// Most lines.
    pub limit: usize,
}

impl LogQuery {
    pub(crate) fn wants(&self, line: &LogLine) -> bool {
        (self.from..=self.to).contains(&line.at)
            && line.level >= self.level
            && self.search.as_ref().is_none_or(|part| line.message.contains(part.as_str()))
    }
}

impl Control {
    /// The wanted lines of a sandbox, running or ended. Unknown sandboxes have none.
    pub async fn logs(&self, team: TeamId, id: &SandboxId, query: LogQuery) -> Vec<LogLine> {
        let Some(book) = self.logs.clone() else { return Vec::new() };
        let id = id.clone();
        tokio::task::spawn_blocking(move || book.read(team, id.as_str(), &query)).await.unwrap_or_default()
    }

    /// Adds a line of our own to a sandbox's log.
    pub(crate) fn log(&self, live: &Live, level: LogLevel, message: &str, fields: &[(&str, String)]) {
        let Some(book) = self.logs.clone() else { return };
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let line = LogLine {
            at: i64::try_from(now).unwrap_or(i64::MAX),
            level,
            logger: "sandbox".to_owned(),
            message: message.to_owned(),
            fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        };
        let (team, id) = (live.team, live.id.clone());
        self.tasks.spawn_blocking(move || book.append(team, id.as_str(), &[line]));
    }
}
