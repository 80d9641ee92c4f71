//! The parts of `cargo xtask test` with the seconds each may take on two idle cores, and what they took this time.
//! The budgets add up to the 35 minutes of a run in a clean checkout. A part over its budget is marked, not failed: a busy machine is slow.

use std::fmt;
use std::time::Instant;

/// One part of a run.
struct Part {
    name: &'static str,
    seconds: u64,
    budget: u64,
}

/// The parts that have run.
pub(crate) struct Budget {
    begun: Instant,
    parts: Vec<Part>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), parts: Vec::new() }
    }

    /// Runs a part and records how long it took beside its budget in seconds.
    pub(crate) fn part<T>(&mut self, name: &'static str, budget: u64, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        self.parts.push(Part { name, seconds: begun.elapsed().as_secs(), budget });
        result
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = Part {
            name: "all",
            seconds: self.begun.elapsed().as_secs(),
            budget: self.parts.iter().map(|part| part.budget).sum(),
        };
        writeln!(f, "{:28} {:>8} {:>8}", "part", "seconds", "budget")?;
        for Part { name, seconds, budget } in self.parts.iter().chain([&all]) {
            let mark = if seconds > budget { "  over budget" } else { "" };
            writeln!(f, "{name:28} {seconds:>8} {budget:>8}{mark}")?;
        }
        Ok(())
    }
}
