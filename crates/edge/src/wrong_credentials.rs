//! [`WrongCredentials`]: slows down clients that guess keys and tokens. Only refusals are delayed, so valid credentials from the same address, such as a
//! proxy's, are served as quickly as ever.

use std::collections::HashMap;
use std::time::Duration;

use budget::Holder;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How many refusals an address gets without a delay.
const FREE: f64 = 20.0;
/// How many refusals are forgotten in a second.
const FORGOTTEN_PER_SECOND: f64 = 0.5;
/// What each further refusal adds to the delay.
const STEP: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Maximum number of addresses that are remembered.
const MAX_ADDRESSES: usize = 10_000;

/// Recent refusals by address.
#[derive(Debug, Default)]
pub(crate) struct WrongCredentials {
    refusals: Mutex<HashMap<Holder, Refusals>>,
}

#[derive(Debug, Clone, Copy)]
struct Refusals {
    count: f64,
    at: Instant,
}

impl Refusals {
    fn count_now(&self) -> f64 {
        (self.count - self.at.elapsed().as_secs_f64() * FORGOTTEN_PER_SECOND).max(0.0)
    }
}

impl WrongCredentials {
    /// Notes a refusal; returns how long its response must wait.
    pub(crate) fn note(&self, address: Holder) -> Duration {
        let mut refusals = self.refusals.lock();
        if refusals.len() >= MAX_ADDRESSES && !refusals.contains_key(&address) {
            refusals.retain(|_, refusals| refusals.count_now() > 0.0);
            if refusals.len() >= MAX_ADDRESSES {
                // So many addresses at once can only be forgotten together: each has its free refusals again.
                refusals.clear();
            }
        }
        let count = refusals.get(&address).map_or(0.0, Refusals::count_now) + 1.0;
        refusals.insert(address, Refusals { count, at: Instant::now() });
        STEP.mul_f64((count - FREE).max(0.0)).min(MAX_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn guesses_become_slow_and_are_forgotten() {
        let wrong = WrongCredentials::default();
        let delays: Vec<Duration> = (0..200).map(|_| wrong.note(Holder(1))).collect();
        assert_eq!(delays[19], Duration::ZERO);
        assert!(delays[25] > Duration::ZERO && delays[199] == MAX_DELAY);
        assert_eq!(wrong.note(Holder(2)), Duration::ZERO, "another address");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(wrong.note(Holder(1)), Duration::ZERO);
    }

    #[test]
    fn addresses_are_bounded() {
        let wrong = WrongCredentials::default();
        for address in 0..25_000 {
            wrong.note(Holder(address));
        }
        assert!(wrong.refusals.lock().len() <= MAX_ADDRESSES);
    }
}
