//! Notices that this sandbox is a copy: restored from a memory image, forked, or rolled back.
//! Copies wake up with the same random state in every process, so kernels must be reseeded before they run code again.
//! Two signs count: another name in envd's file, and wall time that has moved while the monotonic clock stood.

use std::path::PathBuf;

use rustix::time::{ClockId, clock_gettime};

/// Below this, clocks are only being corrected, in nanoseconds.
const JUMP: i128 = 100_000_000;

/// Looks for the signs.
#[derive(Debug)]
pub(crate) struct Watch {
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

impl Watch {
    pub(crate) fn new(name: PathBuf) -> Self {
        let seen = look(&name);
        Self { name, seen, copies: 0 }
    }

    /// How often this has turned out to be a copy; a kernel seeded at a lower count needs a new seed.
    pub(crate) fn copies(&mut self) -> u64 {
        let now = look(&self.name);
        if differs(&self.seen, &now) {
            self.copies += 1;
        }
        self.seen = now;
        self.copies
    }
}

fn differs(before: &Signs, now: &Signs) -> bool {
    before.name != now.name || (before.offset - now.offset).abs() > JUMP
}

fn look(name: &std::path::Path) -> Signs {
    let nanoseconds = |clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    Signs {
        name: std::fs::read_to_string(name).ok(),
        offset: nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic),
    }
}

/// A seed that fits every language's idea of one.
pub(crate) fn seed() -> u32 {
    // The kernel's generator always answers once the machine is up; then its number is positive in 31 bits, as R wants it.
    getrandom::u32().unwrap_or_else(|_| std::process::id()) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_a_copy_and_the_same_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        std::fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(path.clone());
        assert_eq!((watch.copies(), watch.copies()), (0, 0));
        std::fs::write(&path, "two").unwrap();
        assert_eq!((watch.copies(), watch.copies()), (1, 1));
    }

    #[test]
    fn time_that_passed_outside_is_a_copy_and_a_correction_is_not() {
        let before = Signs { name: None, offset: 1_000 };
        assert!(differs(&before, &Signs { offset: 1_000 + 2 * JUMP, ..before.clone() }));
        assert!(differs(&before, &Signs { offset: 1_000 - 2 * JUMP, ..before.clone() }));
        assert!(!differs(&before, &Signs { offset: 1_000 + JUMP / 10, ..before.clone() }));
    }
}
