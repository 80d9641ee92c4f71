//! Figures of teams: how many sandboxes they have at once, and how many they start. Nothing is written for idle teams: zeroes are
//! filled in when a series is read. Peaks between two writes count, so that a sandbox that lives for a second is seen.

use std::collections::HashMap;
use std::path::Path;

use ids::TeamId;
use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Period;
use super::series::{self, Record, check};
use crate::{Control, ControlError};

/// Default period of a query, seconds.
const WEEK: i64 = 7 * 24 * 3600;
/// The last second with a four-digit year.
const LAST: i64 = 253_402_300_799;

/// A team's figures in one step of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TeamSample {
    /// Beginning of the step, seconds since 1970.
    pub at: i64,
    /// Maximum number of sandboxes at once.
    pub concurrent: u32,
    /// Number of sandboxes started.
    pub starts: u32,
    /// Sandboxes started per second.
    pub start_rate: f64,
}

/// A figure of a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeamMetric {
    /// Sandboxes at once.
    ConcurrentSandboxes,
    /// Sandboxes started per second.
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

/// Counts since the last write, by team.
#[derive(Debug, Default)]
pub(super) struct TeamCounters {
    by_team: Mutex<HashMap<TeamId, Counter>>,
}

#[derive(Debug, Default)]
struct Counter {
    peak: u32,
    starts: u32,
    /// Whether a zero has been written since the last other value, so that nothing more needs to be written.
    is_idle: bool,
}

impl Counter {
    fn count_running(&mut self, running: usize) {
        self.peak = self.peak.max(u32::try_from(running).unwrap_or(u32::MAX));
    }
}

impl TeamCounters {
    /// Returns the figures since the last call; an idle team is left out after its first zero.
    pub(super) fn take(&self) -> Vec<(TeamId, TeamSample)> {
        let at = OffsetDateTime::now_utc().unix_timestamp();
        let mut by_team = self.by_team.lock();
        by_team.retain(|_, counter| !counter.is_idle);
        by_team
            .iter_mut()
            .map(|(team, counter)| {
                let Counter { peak, starts, .. } = std::mem::take(counter);
                counter.is_idle = peak == 0 && starts == 0;
                (*team, TeamSample { at, concurrent: peak, starts, start_rate: 0.0 })
            })
            .collect()
    }

    /// Counts a start; `running` sandboxes of the team run now.
    pub(super) fn count_start(&self, team: TeamId, running: usize) {
        self.with(team, |counter| {
            counter.starts = counter.starts.saturating_add(1);
            counter.count_running(running);
        });
    }

    /// Counts the team's running sandboxes.
    pub(super) fn count_running(&self, team: TeamId, running: usize) {
        if running > 0 {
            self.with(team, |counter| counter.count_running(running));
        }
    }

    fn with(&self, team: TeamId, change: impl FnOnce(&mut Counter)) {
        let mut by_team = self.by_team.lock();
        let counter = by_team.entry(team).or_default();
        counter.is_idle = false;
        change(counter);
    }
}

/// Reads a team's figures, one per step; steps without a record have the figure zero.
fn read_team(path: &Path, period: Period, step: i64) -> Vec<TeamSample> {
    let mut steps: Vec<TeamSample> = Vec::new();
    let at = |time: i64| time.div_euclid(step) * step;
    let read = series::each(path, |sample: TeamSample| {
        if !period.contains(sample.at) {
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
        tracing::warn!(path = %path.display(), %error, "failed to read all metrics of a team");
    }
    #[expect(clippy::cast_precision_loss, reason = "a step is at most 900")]
    let seconds = step as f64;
    for sample in &mut steps {
        sample.at = sample.at.max(period.from);
        sample.start_rate = f64::from(sample.starts) / seconds;
    }
    steps
}

/// Returns the period of a query, by default the last seven days.
fn check_period(start: Option<i64>, end: Option<i64>) -> Result<Period, ControlError> {
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
    Ok(Period { from, to })
}

impl Control {
    /// Returns a team's figures from `start` to `end`, seconds since 1970, by default for the last seven days. The longer the period,
    /// the longer the steps; from the first record on there is a figure for every step.
    ///
    /// # Errors
    /// The period is invalid.
    pub async fn team_metrics(
        &self,
        team: TeamId,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<TeamSample>, ControlError> {
        let period = check_period(start, end)?;
        Ok(self.read_team(team, period, period.step()).await)
    }

    /// Returns when a figure had its maximum in the period, and the maximum; without records zero at the period's beginning.
    ///
    /// # Errors
    /// The period is invalid.
    pub async fn team_maximum(
        &self,
        team: TeamId,
        metric: TeamMetric,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<(i64, f64), ControlError> {
        let period = check_period(start, end)?;
        let steps = self.read_team(team, period, 5).await;
        let value = |sample: &TeamSample| match metric {
            TeamMetric::ConcurrentSandboxes => f64::from(sample.concurrent),
            TeamMetric::SandboxStartRate => sample.start_rate,
        };
        let largest = steps.iter().map(|sample| (sample.at, value(sample))).reduce(|best, next| {
            // Of equal values, the first.
            if next.1 > best.1 { next } else { best }
        });
        Ok(largest.unwrap_or((period.from, 0.0)))
    }

    async fn read_team(&self, team: TeamId, period: Period, step: i64) -> Vec<TeamSample> {
        let Some(store) = self.metrics.store() else { return Vec::new() };
        // Limits how many gaps are filled, whatever the clock was when a record was written.
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let kept = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        let to = period.to.min(now + 1);
        let period = Period { from: period.from.max(to.saturating_sub(kept)), to };
        self.count_running();
        self.metrics.flush().await;
        let path = store.of_team(team);
        tokio::task::spawn_blocking(move || read_team(&path, period, step)).await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SeriesStore;

    #[test]
    fn gaps_are_filled_and_peaks_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = SeriesStore::new(dir.path().to_owned());
        let path = store.of_team(TeamId::generate());
        let base = 1_700_000_100;
        let sample = |at, concurrent, starts| TeamSample { at, concurrent, starts, start_rate: 0.0 };
        store.append(&path, &[sample(base, 3, 10), sample(base + 1, 5, 0), sample(base + 16, 0, 0)]);
        let steps = read_team(&path, Period { from: base, to: base + 100 }, 5);
        let seen: Vec<_> =
            steps.iter().map(|step| (step.at - base, step.concurrent, step.start_rate)).collect();
        assert_eq!(seen, [(0, 5, 2.0), (5, 0, 0.0), (10, 0, 0.0), (15, 0, 0.0)]);
        assert!(read_team(&path, Period { from: base - 9, to: base - 1 }, 5).is_empty());
    }

    #[test]
    fn the_end_of_activity_is_written_once() {
        let (counters, team) = (TeamCounters::default(), TeamId::generate());
        counters.count_running(team, 2);
        assert_eq!(counters.take().len(), 1);
        assert_eq!(counters.take()[0].1.concurrent, 0, "the end of it");
        assert!(counters.take().is_empty());
    }

    #[test]
    fn periods_are_checked() {
        let text = |start, end| check_period(start, end).unwrap_err().to_string();
        assert_eq!(text(Some(2), Some(1)), "start time cannot be after end time");
        assert_eq!(text(Some(LAST + 1), None), "start time cannot be after 9999-12-31T23:59:59Z");
        assert_eq!(text(None, Some(i64::MAX)), "end time cannot be after 9999-12-31T23:59:59Z");
        assert_eq!(text(Some(-1), None), "start time is seconds since 1970");
        let period = check_period(None, Some(WEEK + 5)).unwrap();
        assert_eq!((period.from, period.to), (5, WEEK + 5));
    }
}
