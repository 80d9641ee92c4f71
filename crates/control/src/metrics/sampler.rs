//! Samples every running sandbox every few seconds, each at its own time, so that a thousand samples do not come at once.
//! envd's figures are untrusted numbers; when envd does not answer, only the disk figures are old. Samples are written together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};

use super::Sample;
use crate::Control;
use crate::envd::{self, EnvdMetrics};
use crate::sandboxes::RunningSandbox;

/// Time from a start to the first sample.
const FIRST: Duration = Duration::from_secs(1);
/// Number of samples per request to envd for disk figures.
const DISK_EVERY: u32 = 6;
/// Maximum time that envd has to answer.
const MAX_ANSWER: Duration = Duration::from_secs(1);

/// State between two samples of a sandbox.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// When processor time was last read, and how much it was, microseconds.
    processor: Option<(Instant, u64)>,
    /// envd's last figures.
    envd: EnvdMetrics,
    /// Number of samples taken.
    count: u32,
}

impl Control {
    /// Samples a sandbox until it ends.
    pub(crate) async fn sample_metrics(self: &Arc<Self>, running: &Arc<RunningSandbox>) {
        // Processor time of an earlier run, before a resume or adoption, does not belong to the first sample.
        if let Ok(stats) = running.engine.stats().await {
            running.meter.lock().await.processor.get_or_insert((Instant::now(), stats.cpu_usec));
        }
        let first = Instant::now() + FIRST.min(self.config.sample_every);
        let mut ticks = interval_at(first, self.config.sample_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sampling = async {
            ticks.tick().await;
            self.first_sample(running).await;
            loop {
                ticks.tick().await;
                let mut meter = running.meter.lock().await;
                if let Some(sample) = self.measure(running, &mut meter).await {
                    self.metrics.add(running.team, &running.id, sample);
                }
            }
        };
        tokio::select! {
            () = running.wait_ended() => {}
            () = sampling => {}
        }
        self.metrics.remove_latest(&running.id);
    }

    /// Takes a sample now unless there is one already: two within a second would make the series uneven.
    pub(super) async fn first_sample(&self, running: &RunningSandbox) {
        let mut meter = running.meter.lock().await;
        if self.metrics.latest(&running.id).is_some() {
            return;
        }
        let sample = self.measure(running, &mut meter).await;
        // A sample that is added after the sandbox's end would never be removed.
        if let Some(sample) = sample.filter(|_| !running.has_ended()) {
            self.metrics.add(running.team, &running.id, sample);
        }
    }

    /// Measures what a sandbox uses now. Returns none when neither the engine nor envd can say.
    async fn measure(&self, running: &RunningSandbox, meter: &mut Meter) -> Option<Sample> {
        // Taken before the requests: a busy envd may take seconds to answer.
        let at = time::OffsetDateTime::now_utc().unix_timestamp();
        let stats = running.engine.stats().await.ok()?;
        let now = Instant::now();
        // Without a memory limit the engine has no accounting for the sandbox; then envd's figures are used.
        let is_accounted = stats.memory_limit_bytes > 0;
        let knows_disk = stats.disk_limit_bytes > 0;
        if !is_accounted || (!knows_disk && meter.count.is_multiple_of(DISK_EVERY)) {
            let token = self.tokens.inner(&running.id);
            match timeout(MAX_ANSWER, envd::metrics(&*running.engine, &token)).await {
                Ok(Ok(answer)) => meter.envd = answer,
                _ if is_accounted => {}
                _ => return None,
            }
        }
        meter.count = meter.count.wrapping_add(1);
        let (envd, cpu_count) = (meter.envd, running.details().cpu_count);
        let sample = Sample {
            at,
            cpu_count,
            cpu_used_pct: if envd.cpu_used_pct.is_finite() { envd.cpu_used_pct.max(0.0) } else { 0.0 },
            mem_total: envd.mem_total,
            mem_used: envd.mem_used,
            mem_cache: envd.mem_cache,
            disk_total: envd.disk_total,
            disk_used: envd.disk_used,
        };
        let sample = if knows_disk {
            Sample { disk_total: stats.disk_limit_bytes, disk_used: stats.disk_bytes, ..sample }
        } else {
            sample
        };
        if !is_accounted {
            return Some(sample);
        }
        let (then, before) = meter.processor.replace((now, stats.cpu_usec)).unwrap_or((now, stats.cpu_usec));
        let (elapsed, used) = (now - then, Duration::from_micros(stats.cpu_usec.saturating_sub(before)));
        let available = elapsed.as_secs_f64() * f64::from(cpu_count.max(1));
        let share = if available > 0.0 { used.as_secs_f64() / available * 100.0 } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "a percentage")]
        let cpu_used_pct = ((share * 100.0).round() / 100.0) as f32;
        Some(Sample {
            cpu_used_pct,
            mem_total: stats.memory_limit_bytes,
            mem_used: stats.memory_bytes,
            mem_cache: stats.cache_bytes,
            ..sample
        })
    }

    /// Counts each team's sandboxes and writes waiting samples, without end.
    pub(crate) async fn keep_metrics(&self) {
        let mut ticks = interval(self.config.sample_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.count_running();
            self.metrics.flush().await;
        }
    }

    /// Counts a start in the team's figures.
    pub(crate) fn count_start(&self, team: ids::TeamId) {
        self.metrics.teams.count_start(team, self.registry.running_of(team).len());
    }

    /// Counts each team's running sandboxes.
    pub(super) fn count_running(&self) {
        for team in self.teams() {
            self.metrics.teams.count_running(team.id, self.registry.running_of(team.id).len());
        }
    }
}
