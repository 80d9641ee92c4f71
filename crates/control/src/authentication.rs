//! [`Authentication`]: how the API tells the edge whose connection it serves.

use std::sync::{Arc, OnceLock};

use ids::{TeamId, UserId};

/// A request extension: the edge inserts it, the API notes in it whom it has authenticated, and the edge treats the connection accordingly.
#[derive(Debug, Clone, Default)]
pub struct Authentication(Arc<OnceLock<u128>>);

/// The account of the operator, whose token belongs to no team.
const OPERATOR: u128 = 1;

impl Authentication {
    /// Notes that the request acts for a team.
    pub fn team(&self, team: TeamId) {
        let _ = self.0.set(team.as_u128());
    }

    /// Notes that the request is a user's.
    pub fn user(&self, user: UserId) {
        let _ = self.0.set(user.as_u128());
    }

    /// Notes that the request is the operator's.
    pub fn operator(&self) {
        let _ = self.0.set(OPERATOR);
    }

    /// Returns the account that was noted: a number that is unique among teams, users and the operator.
    #[must_use]
    pub fn account(&self) -> Option<u128> {
        self.0.get().copied()
    }
}
