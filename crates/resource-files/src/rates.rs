//! [`Rates`]: how many requests of each sandbox are answered at once. The serving process works outside of the sandbox's limits, so a sandbox
//! that reads without end would have the host's processors work for it. What exceeds its rate waits, each request of each of its threads;
//! requests of others do not.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Requests per second that a sandbox may make for long.
const RATE: f64 = 2000.0;
/// Requests that it may make at once. A program that starts makes some dozens.
const BURST: f64 = 2000.0;
/// Time between two looks at what waits.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// Number of sandboxes at which those are forgotten that have made no request for long.
const MAX_IDLE: usize = 1024;

/// The requests of all sandboxes, by the number of their range of ids.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    sandboxes: HashMap<u32, Bucket>,
    /// Number of requests that wait.
    waiting: usize,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    /// At most one for each thread of the sandbox: a thread waits for its answer.
    waiting: VecDeque<Vec<u8>>,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now, waiting: VecDeque::new() }
    }

    fn refill(&mut self, now: Instant) {
        self.left = RATE.mul_add(now.duration_since(self.at).as_secs_f64(), self.left).min(BURST);
        self.at = now;
    }
}

impl Rates {
    /// Whether a request of a sandbox is to be answered now. If not, it is kept until [`Rates::due`] returns it.
    pub(crate) fn admit(&mut self, range: u32, request: &[u8], now: Instant) -> bool {
        if self.sandboxes.len() >= MAX_IDLE {
            self.sandboxes.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < BURST || !bucket.waiting.is_empty()
            });
        }
        let bucket = self.sandboxes.entry(range).or_insert_with(|| Bucket::new(now));
        bucket.refill(now);
        if bucket.waiting.is_empty() && bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return true;
        }
        bucket.waiting.push_back(request.to_vec());
        self.waiting += 1;
        false
    }

    /// Whether any request waits.
    pub(crate) fn is_any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Returns the requests that have waited long enough.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut due = Vec::new();
        for bucket in self.sandboxes.values_mut().filter(|bucket| !bucket.waiting.is_empty()) {
            bucket.refill(now);
            while bucket.left >= 1.0 {
                let Some(request) = bucket.waiting.pop_front() else { break };
                bucket.left -= 1.0;
                due.push(request);
            }
        }
        self.waiting -= due.len();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_sandbox_waits_and_others_do_not() {
        let now = Instant::now();
        let mut rates = Rates::default();
        let admitted = (0..3000).filter(|_| rates.admit(1, b"request", now)).count();
        assert_eq!(admitted, 2000);
        assert!(rates.admit(2, b"request", now));
        assert!(rates.due(now).is_empty() && rates.is_any_waiting());
        assert_eq!(rates.due(now + Duration::from_millis(100)).len(), 200);
        assert!(!rates.admit(1, b"later", now + Duration::from_millis(100)), "in turn");
        assert_eq!(rates.due(now + Duration::from_secs(2)).len(), 801);
        assert!(!rates.is_any_waiting());
    }

    #[test]
    fn idle_sandboxes_are_forgotten() {
        let now = Instant::now();
        let mut rates = Rates::default();
        for range in 0..5000 {
            rates.admit(range, b"", now + Duration::from_millis(u64::from(range)));
        }
        assert!(rates.sandboxes.len() <= MAX_IDLE);
    }
}
