//! A team's figures: how many sandboxes it has at once, and how many it starts.
//! Idle teams cost nothing: zeroes are filled in when they are read.
//! Peaks between two looks count: a sandbox that lives a second was there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ids::TeamId;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Range;
use super::series::{self, Record, check};
use crate::{Control, ControlError};

/// Default range of a query.
const WEEK: i64 = 7 * 24 * 3600;
/// The last second that can be written with a four-digit year.
const LAST: i64 = 253_402_300_799;

/// A team's figures of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TeamSample {
    /// Begin of the step, seconds since 1970.
    pub at: i64,
    /// Most sandboxes at once.
    pub concurrent: u32,
    /// Sandboxes started.
    pub starts: u32,
    /// Sandboxes started a second.
    pub start_rate: f64,
}

/// What a team's maximum can be asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeamMetric {
    /// Sandboxes at once.
    ConcurrentSandboxes,
    /// Sandboxes started a second.
    SandboxStartRate,
}

impl Record for TeamSample {
    const SIZE: usize = 16;

    fn at(&self) -> i64 {
        self.at
    }

    fn put(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        for value in [u32::try_from(self.at).unwrap_or(0), self.concurrent, self.starts] {
            out.extend(value.to_le_bytes());
        }
        let sum = u32::from(check(&out[begin..]));
        out.extend(sum.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if u32::from(check(body)) != u32::from_le_bytes(*sum) {
            return None;
        }
        let four = |at: usize| body[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
        Some(Self { at: four(0).into(), concurrent: four(4), starts: four(8), start_rate: 0.0 })
    }
}

/// What has happened since the last look.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    since: Mutex<HashMap<TeamId, Tally>>,
}

#[derive(Debug, Default)]
struct Tally {
    peak: u32,
    starts: u32,
    /// Said to be zero since the last one that was not: nothing more to write.
    idle: bool,
}

impl Tallies {
    /// The figures up to now; idle teams are left out after their first zero.
    pub(super) fn take(&self) -> Vec<(TeamId, TeamSample)> {
        let at = OffsetDateTime::now_utc().unix_timestamp();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|_, tally| !tally.idle);
        since
            .iter_mut()
            .map(|(team, tally)| {
                let Tally { peak, starts, .. } = std::mem::take(tally);
                tally.idle = peak == 0 && starts == 0;
                (*team, TeamSample { at, concurrent: peak, starts, start_rate: 0.0 })
            })
            .collect()
    }

    fn with(&self, team: TeamId, change: impl FnOnce(&mut Tally)) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = since.entry(team).or_default();
        tally.idle = false;
        change(tally);
    }
}

/// One step after the other, zeroes where nothing was written.
fn read_team(path: &Path, range: Range, step: i64) -> Vec<TeamSample> {
    let mut steps: Vec<TeamSample> = Vec::new();
    let at = |time: i64| time.div_euclid(step) * step;
    let read = series::each(path, |sample: TeamSample| {
        if !range.contains(sample.at) {
            return;
        }
        let begin = at(sample.at);
        if steps.is_empty() {
            steps.push(TeamSample { at: begin, ..TeamSample::default() });
        }
        while let Some(last) = steps.last().filter(|last| last.at < begin) {
            steps.push(TeamSample { at: last.at + step, ..TeamSample::default() });
        }
        if let Some(last) = steps.last_mut() {
            last.concurrent = last.concurrent.max(sample.concurrent);
            last.starts = last.starts.saturating_add(sample.starts);
        }
    });
    if let Err(error) = read {
        tracing::warn!(path = %path.display(), %error, "a team's metrics could not all be read");
    }
    #[expect(clippy::cast_precision_loss, reason = "a step is at most 900")]
    let seconds = step as f64;
    for sample in &mut steps {
        sample.at = sample.at.max(range.from);
        sample.start_rate = f64::from(sample.starts) / seconds;
    }
    steps
}

fn check_range(start: Option<i64>, end: Option<i64>) -> Result<Range, ControlError> {
    let invalid = |text: String| Err(ControlError::Invalid(text));
    let last = OffsetDateTime::from_unix_timestamp(LAST).ok().and_then(|at| at.format(&Rfc3339).ok());
    for (name, time) in [("start", start), ("end", end)] {
        match time {
            Some(..0) => return invalid(format!("{name} time is seconds since 1970")),
            Some(time) if time > LAST => {
                return invalid(format!("{name} time cannot be after {}", last.unwrap_or_default()));
            }
            _ => {}
        }
    }
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let to = end.unwrap_or(now);
    let from = start.unwrap_or(to - WEEK);
    if from > to {
        return invalid("start time cannot be after end time".to_owned());
    }
    Ok(Range { from, to })
}

impl Control {
    /// A team's figures, seconds since 1970, the last seven days without a range. The longer the range, the longer
    /// the steps; from the first record on there is a figure for every step.
    ///
    /// # Errors
    /// The range makes no sense.
    pub async fn team_metrics(
        &self,
        team: TeamId,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<TeamSample>, ControlError> {
        let range = check_range(start, end)?;
        Ok(self.read_team(team, range, range.step()).await)
    }

    /// The largest value of a figure in the range, and when that was. Zero at the range's begin without records.
    ///
    /// # Errors
    /// The range makes no sense.
    pub async fn team_maximum(
        &self,
        team: TeamId,
        metric: TeamMetric,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<(i64, f64), ControlError> {
        let range = check_range(start, end)?;
        let steps = self.read_team(team, range, 5).await;
        let value = |sample: &TeamSample| match metric {
            TeamMetric::ConcurrentSandboxes => f64::from(sample.concurrent),
            TeamMetric::SandboxStartRate => sample.start_rate,
        };
        let largest = steps.iter().map(|sample| (sample.at, value(sample))).reduce(|best, next| {
            // The first of equals.
            if next.1 > best.1 { next } else { best }
        });
        Ok(largest.unwrap_or((range.from, 0.0)))
    }

    async fn read_team(&self, team: TeamId, range: Range, step: i64) -> Vec<TeamSample> {
        let Some(shelf) = self.metrics.shelf() else { return Vec::new() };
        // Filling gaps must end, whatever the clock said when something was written.
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let kept = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        let to = range.to.min(now + 1);
        let range = Range { from: range.from.max(to.saturating_sub(kept)), to };
        self.count_teams();
        self.metrics.flush().await;
        let path = shelf.of_team(team);
        tokio::task::spawn_blocking(move || read_team(&path, range, step)).await.unwrap_or_default()
    }

    /// Notes that a sandbox of the team was started.
    pub(crate) fn note_start(&self, team: TeamId) {
        let running = u32::try_from(self.table.running_of(team).len()).unwrap_or(u32::MAX);
        self.metrics.teams.with(team, |tally| {
            tally.starts = tally.starts.saturating_add(1);
            tally.peak = tally.peak.max(running);
        });
    }

    /// Looks how many sandboxes each team has.
    pub(super) fn count_teams(&self) {
        for team in self.teams() {
            let running = u32::try_from(self.table.running_of(team.id).len()).unwrap_or(u32::MAX);
            if running > 0 {
                self.metrics.teams.with(team.id, |tally| tally.peak = tally.peak.max(running));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Shelf;

    #[test]
    fn gaps_are_filled_and_peaks_kept() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_owned());
        let path = shelf.of_team(TeamId::generate());
        let base = 1_700_000_100;
        let sample = |at, concurrent, starts| TeamSample { at, concurrent, starts, start_rate: 0.0 };
        shelf.append(&path, &[sample(base, 3, 10), sample(base + 1, 5, 0), sample(base + 16, 0, 0)]);
        let steps = read_team(&path, Range { from: base, to: base + 100 }, 5);
        let seen: Vec<_> =
            steps.iter().map(|step| (step.at - base, step.concurrent, step.start_rate)).collect();
        assert_eq!(seen, [(0, 5, 2.0), (5, 0, 0.0), (10, 0, 0.0), (15, 0, 0.0)]);
        assert!(read_team(&path, Range { from: base - 9, to: base - 1 }, 5).is_empty());
    }

    #[test]
    fn idle_teams_are_written_once() {
        let (tallies, team) = (Tallies::default(), TeamId::generate());
        tallies.with(team, |tally| tally.peak = 2);
        assert_eq!(tallies.take().len(), 1);
        assert_eq!(tallies.take()[0].1.concurrent, 0, "the end of it");
        assert!(tallies.take().is_empty());
    }

    #[test]
    fn ranges_are_checked() {
        let text = |start, end| check_range(start, end).unwrap_err().to_string();
        assert_eq!(text(Some(2), Some(1)), "start time cannot be after end time");
        assert_eq!(text(Some(LAST + 1), None), "start time cannot be after 9999-12-31T23:59:59Z");
        assert_eq!(text(None, Some(i64::MAX)), "end time cannot be after 9999-12-31T23:59:59Z");
        assert_eq!(text(Some(-1), None), "start time is seconds since 1970");
        let range = check_range(None, Some(WEEK + 5)).unwrap();
        assert_eq!((range.from, range.to), (5, WEEK + 5));
    }
}
