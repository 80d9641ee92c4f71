//! Detects that this sandbox is a copy: restored from a memory snapshot, forked, or rolled back.
//! Copies have the same random state in every process, so kernels must be reseeded before they run code again.
//! A copy is detected by a changed sandbox id in envd's file, or by wall time that passed while the monotonic clock stood still.

use std::path::PathBuf;

use rustix::time::{ClockId, clock_gettime};

/// Maximum difference that a correction of the clock can make, nanoseconds.
const MAX_CORRECTION: i128 = 100_000_000;

/// Detects copies of the sandbox.
#[derive(Debug)]
pub(crate) struct CopyDetector {
    name: PathBuf,
    seen: Signs,
    copies: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signs {
    name: Option<String>,
    /// Wall time minus monotonic time, in nanoseconds.
    offset: i128,
}

impl CopyDetector {
    pub(crate) fn new(name: PathBuf) -> Self {
        let seen = observe(&name);
        Self { name, seen, copies: 0 }
    }

    /// Returns how many copies were detected so far. A kernel that was seeded at a lower count needs a new seed.
    pub(crate) fn copies(&mut self) -> u64 {
        let now = observe(&self.name);
        if differs(&self.seen, &now) {
            self.copies += 1;
        }
        self.seen = now;
        self.copies
    }
}

fn differs(before: &Signs, now: &Signs) -> bool {
    before.name != now.name || (before.offset - now.offset).abs() > MAX_CORRECTION
}

fn observe(name: &std::path::Path) -> Signs {
    let nanoseconds = |clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    Signs {
        name: std::fs::read_to_string(name).ok(),
        offset: nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic),
    }
}

/// Returns a seed that is valid in every language.
pub(crate) fn seed() -> u32 {
    // The kernel's generator does not fail after boot. The number has 31 bits, because R takes only positive integers.
    getrandom::u32().unwrap_or_else(|_| std::process::id()) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_id_is_a_copy_and_the_same_id_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        std::fs::write(&path, "one").unwrap();
        let mut watch = CopyDetector::new(path.clone());
        assert_eq!((watch.copies(), watch.copies()), (0, 0));
        std::fs::write(&path, "two").unwrap();
        assert_eq!((watch.copies(), watch.copies()), (1, 1));
    }

    #[test]
    fn time_that_passed_during_a_snapshot_is_a_copy_and_a_clock_correction_is_not() {
        let before = Signs { name: None, offset: 1_000 };
        assert!(differs(&before, &Signs { offset: 1_000 + 2 * MAX_CORRECTION, ..before.clone() }));
        assert!(differs(&before, &Signs { offset: 1_000 - 2 * MAX_CORRECTION, ..before.clone() }));
        assert!(!differs(&before, &Signs { offset: 1_000 + MAX_CORRECTION / 10, ..before.clone() }));
    }
}
