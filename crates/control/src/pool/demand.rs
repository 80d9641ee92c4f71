//! [`Demand`]: how many pre-started sandboxes of a build there should be: as many as were asked for in the last minute, within limits.
//! One request makes it one, many requests more, and after ten minutes without any it is none. Times are passed in, for tests.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How long a request counts towards the number.
const RECENT: Duration = Duration::from_secs(60);
/// How long after the last request one sandbox is still kept.
const KEEP_ONE: Duration = Duration::from_secs(600);
/// Maximum number for one build.
const MAX_WANTED: usize = 8;

/// The last requests for a build.
#[derive(Debug, Default)]
pub(super) struct Demand {
    requests: VecDeque<Instant>,
}

impl Demand {
    /// Adds a request.
    pub(super) fn note(&mut self, now: Instant) {
        self.requests.push_back(now);
        if self.requests.len() > MAX_WANTED {
            self.requests.pop_front();
        }
    }

    /// Returns how many sandboxes there should be.
    pub(super) fn wanted(&self, now: Instant) -> usize {
        let recent = self.requests.iter().filter(|at| now.duration_since(**at) < RECENT).count();
        let keeps_one = self.requests.back().is_some_and(|at| now.duration_since(*at) < KEEP_ONE);
        recent.max(usize::from(keeps_one))
    }

    /// Returns when [`Demand::wanted`] changes next without another request.
    pub(super) fn changes_at(&self, now: Instant) -> Option<Instant> {
        let recent = self.requests.iter().map(|at| *at + RECENT).find(|at| *at > now);
        let keeps_one = self.requests.back().map(|at| *at + KEEP_ONE).filter(|at| *at > now);
        recent.or(keeps_one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_follows_the_requests() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut demand = Demand::default();
        assert_eq!((demand.wanted(at(0)), demand.changes_at(at(0))), (0, None));
        for second in 0..3 {
            demand.note(at(second));
        }
        assert_eq!(demand.wanted(at(3)), 3);
        assert_eq!(demand.changes_at(at(3)), Some(at(60)));
        assert_eq!(demand.wanted(at(61)), 1);
        assert_eq!(demand.wanted(at(300)), 1);
        assert_eq!(demand.changes_at(at(300)), Some(at(602)));
        assert_eq!((demand.wanted(at(603)), demand.changes_at(at(603))), (0, None));
        for _ in 0..100 {
            demand.note(at(700));
        }
        assert_eq!(demand.wanted(at(701)), MAX_WANTED);
    }
}
