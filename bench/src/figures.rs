//! The report: measured figures, printed as a table and written as JSON.
//! Latencies are quantiles in milliseconds with the share of rounds that succeeded; other figures have a unit of their own.
//! Goals are the design's, printed beside the figures and not enforced.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The host's processor, memory and kernel.
    pub(crate) machine: String,
    /// The engine and its description of the isolation.
    pub(crate) engine: String,
    figures: Vec<Figure>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    /// What was prepared before: nothing, slots, connections.
    state: String,
    unit: &'static str,
    p50: f64,
    p90: f64,
    p99: f64,
    /// Rounds that succeeded, of all.
    success: f64,
    rounds: usize,
    goal: String,
}

impl Report {
    pub(crate) fn new(machine: String) -> Self {
        Self { machine, engine: String::new(), figures: Vec::new() }
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        eprintln!("{figure}");
        self.figures.push(figure);
    }

    pub(crate) fn add_all(&mut self, figures: Vec<Figure>) {
        figures.into_iter().for_each(|figure| self.add(figure));
    }
}

impl Figure {
    /// Quantiles of latencies; `None` is a round that failed.
    pub(crate) fn latency(name: &str, state: &str, goal: &str, rounds: &[Option<Duration>]) -> Self {
        let mut millis: Vec<f64> = rounds.iter().flatten().map(|d| d.as_secs_f64() * 1000.0).collect();
        millis.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            state: state.into(),
            unit: "ms",
            p50: quantile(&millis, 50),
            p90: quantile(&millis, 90),
            p99: quantile(&millis, 99),
            success: ratio(millis.len(), rounds.len()),
            rounds: rounds.len(),
            goal: goal.into(),
        }
    }

    /// A figure with a single value.
    pub(crate) fn single(
        name: &str,
        state: &str,
        unit: &'static str,
        goal: &str,
        value: f64,
        success: f64,
    ) -> Self {
        let (name, state, goal) = (name.into(), state.into(), goal.into());
        Self { name, state, unit, p50: value, p90: value, p99: value, success, rounds: 1, goal }
    }
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last * percent).div_ceil(100)).copied().unwrap_or(f64::NAN)
}

/// A part divided by the whole.
#[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, state, unit, p50, p90, p99, success, rounds, goal } = self;
        let success = success * 100.0;
        if *rounds == 1 {
            return write!(f, "| {name} | {state} | {p50:.2} {unit} | | | {success:.0} % | {goal} |");
        }
        write!(
            f,
            "| {name} | {state} | {p50:.2} {unit} | {p90:.2} | {p99:.2} | {success:.0} % of {rounds} | {goal} |"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine: {}\nengine: {}\n", self.machine, self.engine)?;
        writeln!(
            f,
            "| what | state | p50 | p90 | p99 | success | goal (p50 / p99) |\n|---|---|---|---|---|---|---|"
        )?;
        self.figures.iter().try_for_each(|figure| writeln!(f, "{figure}"))
    }
}
