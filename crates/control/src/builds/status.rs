//! How far a build is and what it has said: asked for some times a second while it runs, and for days afterwards.
//! While it runs its log is in memory, then in a file.
//! Protocol: `GET /templates/{id}/builds/{buildID}/status` and `/logs`.

use ids::{BuildId, TemplateId};
use store::{BuildFailure, BuildStatus, Team};

use super::log::{self, STEP};
use crate::{Control, ControlError, LogLevel, LogLine, LogQuery};

/// Most lines of one answer.
const MOST: usize = 100;

/// How far a build is.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// How far.
    pub status: BuildStatus,
    /// The next lines.
    pub lines: Vec<LogLine>,
    /// Why it failed.
    pub failure: Option<BuildFailure>,
    /// What the step that failed warned of.
    pub failure_lines: Vec<LogLine>,
}

/// The step a line belongs to.
impl LogLine {
    /// `base`, `finalize` or the number of a build's step.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        self.fields.get(STEP).map(String::as_str)
    }
}

impl Control {
    /// A build of a team's, and its lines after the first `seen` that matter at least as much as `level`.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn build_report(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
        level: LogLevel,
        seen: usize,
        limit: usize,
    ) -> Result<BuildReport, ControlError> {
        let limit = limit.min(MOST);
        let job = self.jobs.get(id);
        let build = match self.own_build(team, template, id) {
            Ok(build) => build,
            Err(_) => {
                self.catalog.load(&*self.store).await?;
                self.own_build(team, template, id)?
            }
        };
        let lines = match &job {
            Some(job) => job.log.after(level, seen, limit),
            None => {
                let all = self.build_log(team, id, whole(level)).await?;
                all.into_iter().skip(seen).take(limit).collect()
            }
        };
        let mut failure_lines = Vec::new();
        if let Some(step) = build.failure.as_ref().and_then(|failure| failure.step.as_deref()) {
            let warned = self.build_log(team, id, whole(LogLevel::Warn)).await?;
            failure_lines = warned.into_iter().filter(|line| line.step() == Some(step)).collect();
        }
        Ok(BuildReport { status: build.status, lines, failure: build.failure.clone(), failure_lines })
    }

    /// A build's lines by time.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn build_lines(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
        query: LogQuery,
    ) -> Result<Vec<LogLine>, ControlError> {
        self.own_build(team, template, id)?;
        let query = LogQuery { limit: query.limit.min(MOST), ..query };
        let Some(job) = self.jobs.get(id) else { return self.build_log(team, id, query).await };
        let mut lines: Vec<LogLine> = job.log.lines().into_iter().filter(|line| query.wants(line)).collect();
        if query.newest_first {
            lines.reverse();
        }
        lines.truncate(query.limit);
        Ok(lines)
    }

    async fn build_log(
        &self,
        team: &Team,
        id: BuildId,
        query: LogQuery,
    ) -> Result<Vec<LogLine>, ControlError> {
        let (book, team) = (log::book(&self.build_dirs()?), team.id);
        let read = tokio::task::spawn_blocking(move || book.read(team, &id.to_string(), &query));
        Ok(read.await.unwrap_or_default())
    }
}

fn whole(level: LogLevel) -> LogQuery {
    LogQuery { from: 0, to: i64::MAX, newest_first: false, level, search: None, limit: usize::MAX }
}
