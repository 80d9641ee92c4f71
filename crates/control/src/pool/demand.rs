//! How many sandboxes of a build should wait: as many as were asked for in the last minute, within bounds.
//! One request makes it one; a rush makes it more; a quiet while makes it none again.
//! Time is given in, so that tests need not wait for it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Requests older than this count no more for the number.
const RECENT: Duration = Duration::from_secs(60);
/// So long after the last request one sandbox still waits.
const LASTING: Duration = Duration::from_secs(600);
/// Most that wait for one build.
const MOST: usize = 8;

/// Recent requests.
#[derive(Debug, Default)]
pub(super) struct Demand {
    recent: VecDeque<Instant>,
}

impl Demand {
    pub(super) fn note(&mut self, now: Instant) {
        self.recent.push_back(now);
        if self.recent.len() > MOST {
            self.recent.pop_front();
        }
    }

    /// How many should wait now.
    pub(super) fn wanted(&self, now: Instant) -> usize {
        let recent = self.recent.iter().filter(|at| now.duration_since(**at) < RECENT).count();
        let lasting = self.recent.back().is_some_and(|at| now.duration_since(*at) < LASTING);
        recent.max(usize::from(lasting))
    }

    /// When [`Demand::wanted`] next changes by itself.
    pub(super) fn changes_at(&self, now: Instant) -> Option<Instant> {
        let recent = self.recent.iter().map(|at| *at + RECENT).find(|at| *at > now);
        let lasting = self.recent.back().map(|at| *at + LASTING).filter(|at| *at > now);
        recent.or(lasting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_is_asked_for() {
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
        assert_eq!(demand.wanted(at(701)), MOST);
    }
}
