//! When a sandbox's time is up: [`TimeLimit`], and the checks of requested timeouts against the team's limit.

use store::Team;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::ControlError;

/// The end of a sandbox's time, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimit {
    /// As users see it.
    pub(crate) end_at: OffsetDateTime,
    /// As the timer waits for it.
    pub(crate) deadline: Instant,
}

impl TimeLimit {
    pub(crate) fn until(end_at: OffsetDateTime) -> Self {
        let end_at = store::truncate_to_micros(end_at);
        let left = end_at - OffsetDateTime::now_utc();
        // If the end has passed already, the deadline is now.
        let left = std::time::Duration::try_from(left).unwrap_or_default();
        Self { end_at, deadline: Instant::now() + left }
    }
}

/// Rejects timeouts that are not positive or longer than the team's limit.
pub(crate) fn check_timeout(team: &Team, seconds: i64) -> Result<(), ControlError> {
    if seconds <= 0 {
        return Err(ControlError::Invalid("Timeout must be greater than 0".to_owned()));
    }
    check_max_timeout(team, seconds)
}

/// Rejects timeouts that are longer than the team's limit.
pub(crate) fn check_max_timeout(team: &Team, seconds: i64) -> Result<(), ControlError> {
    let hours = team.limits.max_length_hours;
    if seconds > max_timeout(team) {
        return Err(ControlError::Invalid(format!("Timeout cannot be greater than {hours} hours")));
    }
    Ok(())
}

/// Returns the team's maximum life of a sandbox, seconds. Without a limit it is a century, with which times stay printable.
pub(crate) fn max_timeout(team: &Team) -> i64 {
    match team.limits.max_length_hours {
        0 => 100 * 365 * 24 * 3600,
        hours => i64::from(hours) * 3600,
    }
}
