//! [`Quota`]: limits how many running sandboxes, or builds in progress, each team has at once.

use std::collections::HashMap;
use std::sync::Arc;

use ids::TeamId;
use parking_lot::Mutex;

use super::LimitError;

/// Counts per team.
#[derive(Debug, Default)]
pub struct TeamQuota {
    taken: Mutex<HashMap<TeamId, u32>>,
}

/// One counted item of a team, given back when dropped.
#[derive(Debug)]
pub struct QuotaReservation {
    quota: Arc<TeamQuota>,
    team: TeamId,
}

impl TeamQuota {
    /// Counts one more item of a team; a limit of zero means no limit.
    ///
    /// # Errors
    /// [`LimitError::Quota`] when the team has `limit` items already.
    pub fn reserve(self: &Arc<Self>, team: TeamId, limit: u32) -> Result<QuotaReservation, LimitError> {
        let mut taken = self.taken.lock();
        let count = taken.entry(team).or_default();
        if limit > 0 && *count >= limit {
            return Err(LimitError::Quota(limit));
        }
        *count += 1;
        Ok(QuotaReservation { quota: Arc::clone(self), team })
    }

    /// Counts one more item of a team whatever its limit, for items that exist already.
    #[must_use]
    pub fn reserve_unlimited(self: &Arc<Self>, team: TeamId) -> QuotaReservation {
        *self.taken.lock().entry(team).or_default() += 1;
        QuotaReservation { quota: Arc::clone(self), team }
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock();
        if let Some(count) = taken.get_mut(&self.team) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.team);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_reservations_are_given_back() {
        let quota = Arc::new(TeamQuota::default());
        let team = TeamId::generate();
        let first = quota.reserve(team, 1).unwrap();
        assert!(matches!(quota.reserve(team, 1), Err(LimitError::Quota(1))));
        assert!(quota.reserve(TeamId::generate(), 1).is_ok(), "another team has its own count");
        drop(first);
        let _again = quota.reserve(team, 1).unwrap();
        let _unlimited = quota.reserve(team, 0).unwrap();
        let _existing = quota.reserve_unlimited(team);
    }
}
