//! Status and log of a build: polled several times a second while it runs, and available for days afterwards. While a build runs
//! its log is in memory, afterwards in a file.
//! Protocol: `GET /templates/{id}/builds/{buildID}/status` and `/logs`.

use ids::{BuildId, TemplateId};
use logs::{LogLevel, LogLine, LogQuery};
use store::{BuildFailure, BuildStatus, Team};

use super::{BuildError, Builds};

/// Maximum number of lines per response.
const MAX_LINES: usize = 100;

/// Status of a build.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The status.
    pub status: BuildStatus,
    /// The next lines of the log.
    pub lines: Vec<LogLine>,
    /// Why the build failed.
    pub failure: Option<BuildFailure>,
    /// Warnings and errors of the step that failed.
    pub failure_lines: Vec<LogLine>,
}

impl Builds {
    /// Returns a build's status and its log lines of at least severity `level`, without the first `seen` of them.
    ///
    /// # Errors
    /// The team has no such build.
    pub async fn report(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
        level: LogLevel,
        seen: usize,
        limit: usize,
    ) -> Result<BuildReport, BuildError> {
        let limit = limit.min(MAX_LINES);
        let job = self.jobs.get(id);
        let build = match self.own_build(team, template, id) {
            Ok(build) => build,
            Err(_) => {
                self.catalog.reload().await?;
                self.own_build(team, template, id)?
            }
        };
        let lines = match &job {
            Some(job) => job.log.after(level, seen, limit),
            None => {
                let all = self.logged(team, id, all_of(level)).await?;
                all.into_iter().skip(seen).take(limit).collect()
            }
        };
        let mut failure_lines = Vec::new();
        if let Some(step) = build.failure.as_ref().and_then(|failure| failure.step.as_deref()) {
            let warned = self.logged(team, id, all_of(LogLevel::Warn)).await?;
            failure_lines = warned.into_iter().filter(|line| line.step() == Some(step)).collect();
        }
        Ok(BuildReport { status: build.status, lines, failure: build.failure.clone(), failure_lines })
    }

    /// Returns a build's log lines by time.
    ///
    /// # Errors
    /// The team has no such build.
    pub async fn lines(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
        query: LogQuery,
    ) -> Result<Vec<LogLine>, BuildError> {
        self.own_build(team, template, id)?;
        let query = LogQuery { limit: query.limit.min(MAX_LINES), ..query };
        let Some(job) = self.jobs.get(id) else { return self.logged(team, id, query).await };
        let mut lines: Vec<LogLine> =
            job.log.lines().into_iter().filter(|line| query.matches(line)).collect();
        if query.newest_first {
            lines.reverse();
        }
        lines.truncate(query.limit);
        Ok(lines)
    }

    /// Returns log lines of a build that has ended.
    async fn logged(&self, team: &Team, id: BuildId, query: LogQuery) -> Result<Vec<LogLine>, BuildError> {
        let (logs, team) = (self.directories()?.logs(), team.id);
        let read = tokio::task::spawn_blocking(move || logs.read(team, &id.to_string(), &query));
        Ok(read.await.unwrap_or_default())
    }
}

fn all_of(level: LogLevel) -> LogQuery {
    LogQuery { from: 0, to: i64::MAX, newest_first: false, level, search: None, limit: usize::MAX }
}
