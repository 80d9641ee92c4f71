//! What sandboxes use over time: a sample of each every few seconds (`sampler`), written to disk in batches and kept for days
//! (`series`). Processor and memory come from the engine's accounting; disk figures too where
//! the engine limits the disk, else from envd, which is asked less often.
//! Teams have a series of their own: sandboxes at once, and starts (`team`).

mod sampler;
mod series;
mod team;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ids::{SandboxId, TeamId};
use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{Control, ControlError};
use series::{Record, check};

pub(crate) use sampler::Meter;
pub(crate) use series::SeriesStore;
pub use team::{TeamMetric, TeamSample};

/// Maximum number of samples that wait to be written: when the disk hangs, memory must not grow.
const MAX_WAITING: usize = 100_000;

/// What a sandbox used at one moment. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Time, seconds since 1970 by this server's clock.
    pub at: i64,
    /// Number of processors.
    pub cpu_count: u32,
    /// Share of them used since the previous sample, percent.
    pub cpu_used_pct: f32,
    /// Total memory.
    pub mem_total: u64,
    /// Used memory, without page cache.
    pub mem_used: u64,
    /// Page cache.
    pub mem_cache: u64,
    /// Total disk.
    pub disk_total: u64,
    /// Used disk.
    pub disk_used: u64,
}

/// Sizes are stored in KiB: four bytes suffice for 4 TiB.
impl Record for Sample {
    const SIZE: usize = 32;

    fn at(&self) -> i64 {
        self.at
    }

    fn put(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX).to_le_bytes();
        out.extend(u32::try_from(self.at).unwrap_or(0).to_le_bytes());
        out.extend(u16::try_from(self.cpu_count).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(self.cpu_used_pct.to_le_bytes());
        for size in [self.mem_total, self.mem_used, self.mem_cache, self.disk_total, self.disk_used] {
            out.extend(kib(size));
        }
        let sum = check(&out[begin..]);
        out.extend(sum.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<2>()?;
        if check(body) != u16::from_le_bytes(*sum) {
            return None;
        }
        let four = |at: usize| body[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
        let kib = |at: usize| u64::from(four(at)) << 10;
        Some(Self {
            at: four(0).into(),
            cpu_count: u16::from_le_bytes([body[4], body[5]]).into(),
            cpu_used_pct: f32::from_bits(four(6)),
            mem_total: kib(10),
            mem_used: kib(14),
            mem_cache: kib(18),
            disk_total: kib(22),
            disk_used: kib(26),
        })
    }
}

/// The latest samples, and those that wait to be written.
#[derive(Debug)]
pub(crate) struct Metrics {
    store: Option<Arc<SeriesStore>>,
    /// The latest sample of each running sandbox.
    latest: Mutex<HashMap<SandboxId, Sample>>,
    waiting: Mutex<Vec<(TeamId, SandboxId, Sample)>>,
    teams: team::TeamCounters,
    /// Held while a batch is written, so that readers see all of it or none.
    writing: tokio::sync::Mutex<()>,
}

impl Metrics {
    pub(crate) fn new(root: Option<PathBuf>) -> Self {
        Self {
            store: root.map(|root| Arc::new(SeriesStore::new(root))),
            latest: Mutex::default(),
            waiting: Mutex::default(),
            teams: team::TeamCounters::default(),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the store of series, if series are kept.
    pub(crate) fn store(&self) -> Option<Arc<SeriesStore>> {
        self.store.clone()
    }

    fn latest(&self, id: &SandboxId) -> Option<Sample> {
        self.latest.lock().get(id).copied()
    }

    /// Adds a sample.
    fn add(&self, team: TeamId, id: &SandboxId, sample: Sample) {
        self.latest.lock().insert(id.clone(), sample);
        if self.store.is_none() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push((team, id.clone(), sample));
        }
    }

    /// Removes the latest sample of a sandbox that has ended.
    fn remove_latest(&self, id: &SandboxId) {
        self.latest.lock().remove(id);
    }

    /// Writes waiting samples.
    pub(crate) async fn flush(&self) {
        let Some(store) = self.store() else { return };
        let _writing = self.writing.lock().await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let teams = self.teams.take();
        // If the thread fails, the batch is lost.
        let _ = tokio::task::spawn_blocking(move || {
            let mut files: HashMap<PathBuf, Vec<Sample>> = HashMap::new();
            for (team, id, sample) in waiting {
                files.entry(store.of_sandbox(team, &id)).or_default().push(sample);
            }
            for (path, samples) in files {
                store.append(&path, &samples);
            }
            for (team, sample) in teams {
                store.append(&store.of_team(team), &[sample]);
            }
        })
        .await;
    }
}

/// A period of time, both ends included; seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Period {
    from: i64,
    to: i64,
}

impl Period {
    /// Returns the time between two returned samples for this period, seconds, as at E2B.
    fn step(self) -> i64 {
        const HOUR: i64 = 3600;
        match self.to.saturating_sub(self.from) {
            ..HOUR => 5,
            length if length < 6 * HOUR => 30,
            length if length < 12 * HOUR => 60,
            length if length < 24 * HOUR => 120,
            length if length < 7 * 24 * HOUR => 300,
            _ => 900,
        }
    }

    fn contains(self, at: i64) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

/// Mean of the samples of one step.
#[derive(Debug, Default)]
struct Mean {
    first: Sample,
    count: u64,
    cpu: f64,
    /// Used memory, page cache, used disk.
    sums: [u64; 3],
}

impl Mean {
    fn add(&mut self, sample: &Sample) {
        if self.count == 0 {
            self.first = *sample;
        }
        // Totals are those of the last sample; they change rarely.
        self.first.cpu_count = sample.cpu_count;
        (self.first.mem_total, self.first.disk_total) = (sample.mem_total, sample.disk_total);
        self.count += 1;
        self.cpu += f64::from(sample.cpu_used_pct);
        for (sum, value) in self.sums.iter_mut().zip([sample.mem_used, sample.mem_cache, sample.disk_used]) {
            *sum = sum.saturating_add(value);
        }
    }

    fn take(&mut self) -> Option<Sample> {
        let Self { first, count, cpu, sums } = std::mem::take(self);
        let of = |sum: u64| sum.checked_div(count);
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a percentage")]
        let cpu_used_pct = (cpu / count.max(1) as f64) as f32;
        Some(Sample {
            cpu_used_pct,
            mem_used: of(sums[0])?,
            mem_cache: of(sums[1])?,
            disk_used: of(sums[2])?,
            ..first
        })
    }
}

/// Reads a sandbox's samples from `from`, or else from the first one, to `to`; one mean per step.
fn read_sandbox(path: &std::path::Path, from: Option<i64>, to: i64) -> Vec<Sample> {
    let first = || series::first_at::<Sample>(path).unwrap_or(to);
    let period = Period { from: from.unwrap_or_else(first), to };
    let step = period.step();
    let (mut means, mut mean, mut current) = (Vec::new(), Mean::default(), i64::MIN);
    let read = series::each(path, |sample: Sample| {
        if !period.contains(sample.at) {
            return;
        }
        if sample.at.div_euclid(step) != current {
            current = sample.at.div_euclid(step);
            means.extend(mean.take());
        }
        mean.add(&sample);
    });
    if let Err(error) = read {
        tracing::warn!(path = %path.display(), %error, "failed to read all metrics of a sandbox");
    }
    means.extend(mean.take());
    means
}

impl Control {
    /// Returns what a team's sandbox used, whether it is running, paused or has ended, from `start` to `end`, or else from its first
    /// to its last sample. Times are seconds since 1970, both included. The longer the period, the further apart the returned
    /// samples. An unknown sandbox has none.
    ///
    /// # Errors
    /// The period ends before it begins, or begins before 1970.
    pub async fn metrics_history(
        &self,
        team: TeamId,
        id: &SandboxId,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<Sample>, ControlError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        if start.is_some_and(|at| at < 0) || end.is_some_and(|at| at < 0) {
            return Err(ControlError::Invalid("start and end are seconds since 1970".to_owned()));
        }
        if start.zip(end).is_some_and(|(start, end)| start > end) {
            return Err(ControlError::Invalid("Invalid time range for metrics".to_owned()));
        }
        // In its first second a sandbox has no sample yet.
        let latest = self.latest_sample(team, id).await;
        let Some(store) = self.metrics.store() else {
            let from = start.unwrap_or(i64::MIN);
            // The period may end "now" by the client's clock, which may be a little behind.
            let period = Period { from, to: end.map_or(i64::MAX, |end| end + 1) };
            return Ok(latest.into_iter().filter(|sample| period.contains(sample.at)).collect());
        };
        self.metrics.flush().await;
        let path = store.of_sandbox(team, id);
        let to = end.unwrap_or(now + 1);
        Ok(tokio::task::spawn_blocking(move || read_sandbox(&path, start, to)).await.unwrap_or_default())
    }

    /// Returns the latest sample of each of these sandboxes that belongs to the team and is running.
    pub async fn latest_metrics(&self, team: TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, Sample)> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.extend(self.latest_sample(team, id).await.map(|sample| (id.clone(), sample)));
        }
        found
    }

    /// Returns a running sandbox's latest sample, taken now if there is none.
    async fn latest_sample(&self, team: TeamId, id: &SandboxId) -> Option<Sample> {
        let running = self.running_sandbox(team, id).ok()?;
        if self.metrics.latest(id).is_none() {
            self.first_sample(&running).await;
        }
        self.metrics.latest(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, mem_used: u64) -> Sample {
        Sample {
            at,
            cpu_count: 2,
            cpu_used_pct: 12.5,
            mem_total: 512 << 20,
            mem_used,
            mem_cache: 1 << 20,
            disk_total: 10 << 30,
            disk_used: 4096,
        }
    }

    #[test]
    fn records_are_read_back_and_damaged_ones_are_not() {
        let mut bytes = Vec::new();
        sample(1_700_000_000, 8 << 20).put(&mut bytes);
        assert_eq!(bytes.len(), Sample::SIZE);
        assert_eq!(Sample::take(&bytes), Some(sample(1_700_000_000, 8 << 20)));
        bytes[9] ^= 1;
        assert_eq!(Sample::take(&bytes), None);
        assert_eq!(Sample::take(&[0; 32]), None, "left by a power failure");
        let huge = Sample { mem_total: u64::MAX, ..sample(1, 1) };
        bytes.clear();
        huge.put(&mut bytes);
        assert_eq!(
            Sample::take(&bytes).unwrap().mem_total,
            u64::from(u32::MAX) << 10,
            "saturated, not wrapped"
        );
    }

    #[test]
    fn steps_grow_with_the_period() {
        let step = |hours: i64| Period { from: 0, to: hours * 3600 - 1 }.step();
        assert_eq!([step(1), step(6), step(12), step(24), step(168), step(169)], [5, 30, 60, 120, 300, 900]);
        assert_eq!(Period { from: 0, to: 3600 }.step(), 30);
    }

    #[test]
    fn files_are_read_in_steps_torn_ends_are_cut_and_old_records_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = SeriesStore::new(dir.path().to_owned());
        let (team, id) = (TeamId::generate(), SandboxId::generate());
        let path = store.of_sandbox(team, &id);
        let base = 1_700_000_100;
        let samples: Vec<_> = (0..120).map(|n| sample(base + n * 5, (n as u64) << 20)).collect();
        store.append(&path, &samples[..60]);
        // A crash in the middle of a record.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(60 * 32 + 7).unwrap();
        store.append(&path, &samples[60..]);

        assert_eq!(read_sandbox(&path, None, base + 600), samples, "five seconds apart, all of them");
        assert_eq!(read_sandbox(&path, Some(base + 10), base + 20), samples[2..5]);
        let coarse = read_sandbox(&path, Some(base - 3600), base + 600);
        assert_eq!(coarse.len(), 20, "half a minute apart");
        assert_eq!((coarse[0].at, coarse[0].mem_used), (base, (5 << 20) / 2), "the mean of six");
        assert!(read_sandbox(&path, Some(base - 100), base - 1).is_empty());

        // The records are years old, but the file was written just now: the records are removed, not the file.
        store.forget(std::time::Duration::from_secs(3600));
        assert!(read_sandbox(&path, None, base + 600).is_empty());
        assert!(path.exists());
        store.forget(std::time::Duration::ZERO);
        assert!(!path.exists());
    }
}
