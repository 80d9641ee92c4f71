//! How much a sandbox may ask resolvers, alone and beside the others. The total protects the operator's resolvers; each
//! sandbox has a small share that the others cannot take from it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Queries of one sandbox, whoever answers them: per second, and at once.
const SANDBOX_RATE: (u32, u32) = (200, 1000);
/// Queries to resolvers of all sandboxes together.
const TOTAL_RATE: (u32, u32) = (2000, 4000);
/// Queries to resolvers that each sandbox may make when the total is used up.
const SHARE_RATE: (u32, u32) = (10, 50);
/// Maximum number of queries in progress: of one sandbox, of all, and of each when those of all are used up.
const SANDBOX_PENDING: usize = 128;
const TOTAL_PENDING: usize = 1024;
const SHARE_PENDING: usize = 4;

/// Permits something at a rate, and a number of times at once after a pause.
#[derive(Debug)]
struct TokenBucket {
    per_second: f64,
    burst: f64,
    state: Mutex<(f64, Instant)>,
}

impl TokenBucket {
    fn new((per_second, burst): (u32, u32)) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, state: Mutex::new((burst, Instant::now())) }
    }

    fn try_take(&self) -> bool {
        let mut state = self.state.lock();
        let (tokens, then) = *state;
        let now = Instant::now();
        let passed = now.saturating_duration_since(then).as_secs_f64();
        let tokens = passed.mul_add(self.per_second, tokens).min(self.burst);
        let is_permitted = tokens >= 1.0;
        *state = (if is_permitted { tokens - 1.0 } else { tokens }, now);
        is_permitted
    }
}

/// What all sandboxes of a server may ask together. Clones share it.
#[derive(Debug, Clone)]
pub struct DnsTotal(Arc<(TokenBucket, Arc<Semaphore>)>);

impl Default for DnsTotal {
    fn default() -> Self {
        Self(Arc::new((TokenBucket::new(TOTAL_RATE), Arc::new(Semaphore::new(TOTAL_PENDING)))))
    }
}

/// What one sandbox may ask.
#[derive(Debug)]
pub(super) struct Limits {
    own: TokenBucket,
    pending: Arc<Semaphore>,
    share: TokenBucket,
    share_pending: Arc<Semaphore>,
    total: DnsTotal,
}

/// Permits one query to resolvers until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
}

impl Limits {
    pub(super) fn new(total: DnsTotal) -> Self {
        Self {
            own: TokenBucket::new(SANDBOX_RATE),
            pending: Arc::new(Semaphore::new(SANDBOX_PENDING)),
            share: TokenBucket::new(SHARE_RATE),
            share_pending: Arc::new(Semaphore::new(SHARE_PENDING)),
            total,
        }
    }

    /// Whether one more query of the sandbox may be answered at all.
    pub(super) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.pending).try_acquire_owned().ok()?;
        self.own.try_take().then_some(place)
    }

    /// Whether one more query may be sent to resolvers.
    pub(super) fn forward(&self) -> Option<Permit> {
        let take = |pending: &Arc<Semaphore>, rate: &TokenBucket| {
            let place = Arc::clone(pending).try_acquire_owned().ok()?;
            rate.try_take().then_some(Permit { _place: place })
        };
        let (rate, pending) = &*self.total.0;
        take(pending, rate).or_else(|| take(&self.share_pending, &self.share))
    }
}

/// Time that a connection for DNS over TCP may last, and that it may be idle.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of queries on one connection.
pub(super) const CONNECTION_QUERIES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_followed_by_a_rate() {
        let limits = Limits::new(DnsTotal::default());
        let taken = || std::iter::from_fn(|| limits.admit()).count();
        assert_eq!(taken(), 1000);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(taken(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn queries_in_progress_are_limited() {
        let limits = Limits::new(DnsTotal::default());
        let places: Vec<_> = std::iter::from_fn(|| limits.admit()).take(2000).collect();
        assert_eq!(places.len(), SANDBOX_PENDING);
    }

    #[tokio::test(start_paused = true)]
    async fn each_sandbox_keeps_its_share_when_others_use_up_the_total() {
        let total = DnsTotal::default();
        let greedy = Limits::new(total.clone());
        let forwarded = |limits: &Limits| std::iter::from_fn(|| limits.forward()).count();
        assert_eq!(forwarded(&greedy), 4000 + 50);
        let modest = Limits::new(total.clone());
        assert_eq!(forwarded(&modest), 50);
        tokio::time::advance(Duration::from_secs(10)).await;
        let held: Vec<_> = std::iter::from_fn(|| greedy.forward()).collect();
        assert_eq!(held.len(), TOTAL_PENDING + SHARE_PENDING);
        assert!(modest.forward().is_some());
    }
}
