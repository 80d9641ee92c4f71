//! Looks at each running sandbox every few seconds, each at its own moment so that a thousand do not come at once.
//! Nothing an agent says is trusted beyond being a number; an agent that does not answer costs the disk figures alone.
//! Samples go to disk together, by one task.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};

use super::Sample;
use crate::Control;
use crate::envd::{self, EnvdMetrics};
use crate::sandboxes::running::Live;

/// From a start to its first sample.
const FIRST: Duration = Duration::from_secs(1);
/// Samples between two questions for the disk.
const DISK_EVERY: u32 = 6;
/// Longest wait for an agent.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is remembered from one sample of a sandbox to the next.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// When processor time was last read, and how much it was, microseconds.
    processor: Option<(Instant, u64)>,
    /// The agent's last answer.
    agent: EnvdMetrics,
    round: u32,
}

impl Control {
    /// Samples a sandbox to its end.
    pub(crate) async fn sample_metrics(self: &Arc<Self>, live: &Arc<Live>) {
        // It may have had a life before this run, whose processor time is none of its first sample's.
        if let Ok(stats) = live.engine.stats().await {
            live.meter.lock().await.processor.get_or_insert((Instant::now(), stats.cpu_usec));
        }
        let mut ticks =
            interval_at(Instant::now() + FIRST.min(self.config.sample_every), self.config.sample_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sampling = async {
            ticks.tick().await;
            self.first_sample(live).await;
            loop {
                ticks.tick().await;
                let mut meter = live.meter.lock().await;
                if let Some(sample) = self.measure(live, &mut meter).await {
                    self.metrics.keep(live.team, &live.id, sample);
                }
            }
        };
        tokio::select! {
            () = live.wait_ended() => {}
            () = sampling => {}
        }
        self.metrics.forget(&live.id);
    }

    /// Takes one now unless there is one: two of the same second would make a series uneven.
    pub(super) async fn first_sample(&self, live: &Live) {
        let mut meter = live.meter.lock().await;
        if self.metrics.latest(&live.id).is_some() {
            return;
        }
        let sample = self.measure(live, &mut meter).await;
        // Once it has ended nobody would forget it.
        if let Some(sample) = sample.filter(|_| !live.has_ended()) {
            self.metrics.keep(live.team, &live.id, sample);
        }
    }

    /// What it uses now. None when neither engine nor agent can say.
    async fn measure(&self, live: &Live, meter: &mut Meter) -> Option<Sample> {
        // Now: a busy agent may take seconds to answer, and samples would come unevenly.
        let at = time::OffsetDateTime::now_utc().unix_timestamp();
        let stats = live.engine.stats().await.ok()?;
        let now = Instant::now();
        // Without a limit the engine does not account for it: then it is the agent's word.
        let accounted = stats.memory_limit_bytes > 0;
        if !accounted || meter.round.is_multiple_of(DISK_EVERY) {
            let token = self.tokens.envd(&live.id);
            match timeout(PATIENCE, envd::metrics(&*live.engine, &token)).await {
                Ok(Ok(answer)) => meter.agent = answer,
                _ if accounted => {}
                _ => return None,
            }
        }
        meter.round = meter.round.wrapping_add(1);
        let (agent, cpu_count) = (meter.agent, live.details().cpu_count);
        let sample = Sample {
            at,
            cpu_count,
            cpu_used_pct: if agent.cpu_used_pct.is_finite() { agent.cpu_used_pct.max(0.0) } else { 0.0 },
            mem_total: agent.mem_total,
            mem_used: agent.mem_used,
            mem_cache: agent.mem_cache,
            disk_total: agent.disk_total,
            disk_used: agent.disk_used,
        };
        if !accounted {
            return Some(sample);
        }
        let (then, before) = meter.processor.replace((now, stats.cpu_usec)).unwrap_or((now, stats.cpu_usec));
        let (elapsed, used) = (now - then, Duration::from_micros(stats.cpu_usec.saturating_sub(before)));
        let there_was = elapsed.as_secs_f64() * f64::from(cpu_count.max(1));
        let share = if there_was > 0.0 { used.as_secs_f64() / there_was * 100.0 } else { 0.0 };
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

    /// Counts each team's sandboxes and writes what has come in, for ever.
    pub(crate) async fn keep_metrics(&self) {
        let mut ticks = interval(self.config.sample_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.count_teams();
            self.metrics.flush().await;
        }
    }
}
