//! `/proc/loadavg`: averages of the processors that a sandbox keeps busy. The kernel counts no runnable tasks for a control group, so
//! the average is of used time; a sandbox at its limit has the load of its limit.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use parking_lot::Mutex;

use super::Source;

/// Minutes of the three averages.
const MINUTES: [f64; 3] = [1.0, 5.0, 15.0];

/// The averages of all sandboxes, by the number of their range of ids.
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<u32, Load>>);

#[derive(Debug, Clone, Copy)]
struct Load {
    at: Instant,
    used_usec: u64,
    averages: [f64; 3],
}

impl Loads {
    /// Begins to average for a sandbox, unless it was begun.
    pub(crate) fn begin(&self, range: u32, used_usec: u64) {
        let first = Load { at: Instant::now(), used_usec, averages: [0.0; 3] };
        self.0.lock().entry(range).or_insert(first);
    }

    /// Takes a sample of each sandbox. `used` returns its processor time, or `None` once it has ended.
    pub(crate) fn sample(&self, used: impl Fn(u32) -> Option<u64>) {
        let ranges: Vec<u32> = self.0.lock().keys().copied().collect();
        for range in ranges {
            // Read without the lock, because the kernel may take its time.
            let used = used(range);
            let mut loads = self.0.lock();
            match (used, loads.get_mut(&range)) {
                (Some(used), Some(load)) => load.add(used, Instant::now()),
                _ => drop(loads.remove(&range)),
            }
        }
    }

    fn of(&self, range: u32) -> [f64; 3] {
        self.0.lock().get(&range).map_or([0.0; 3], |load| load.averages)
    }
}

impl Load {
    fn add(&mut self, used_usec: u64, now: Instant) {
        let passed = now.duration_since(self.at).as_secs_f64();
        if passed <= 0.0 {
            return;
        }
        // Another sandbox may have got the same ids: its time begins at 0.
        let used = std::time::Duration::from_micros(used_usec.saturating_sub(self.used_usec)).as_secs_f64();
        for (average, minutes) in self.averages.iter_mut().zip(MINUTES) {
            let kept = (-passed / (minutes * 60.0)).exp();
            *average = average.mul_add(kept, used / passed * (1.0 - kept));
        }
        (self.at, self.used_usec) = (now, used_usec);
    }
}

/// `/proc/loadavg`.
pub(super) fn average(source: &Source<'_>) -> io::Result<String> {
    let [one, five, fifteen] = source.loads.of(source.range);
    let tasks = source.control.pids("pids.current")?;
    let tasks = tasks.trim();
    Ok(format!("{one:.2} {five:.2} {fifteen:.2} 1/{tasks} {tasks}\n"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn averages_approach_the_use() {
        let begun = Instant::now();
        let mut load = Load { at: begun, used_usec: 0, averages: [0.0; 3] };
        for minute in 1..=20u64 {
            load.add(minute * 120_000_000, begun + Duration::from_secs(60 * minute));
        }
        assert!((load.averages[0] - 2.0).abs() < 0.01, "{load:?}");
        assert!(load.averages[2] > 1.4 && load.averages[2] < 2.0, "{load:?}");
    }

    #[test]
    fn ended_sandboxes_are_forgotten() {
        let loads = Loads::default();
        loads.begin(1, 0);
        loads.begin(2, 0);
        loads.sample(|range| (range == 1).then_some(10));
        assert_eq!(loads.0.lock().keys().copied().collect::<Vec<_>>(), [1]);
    }
}
