//! What a team may have and what the host starts at a time: [`TeamQuota`] (how many at once per team), [`StartQueue`] (the
//! queue of sandbox starts in front of the engine) and the checks of sandbox sizes.
//! Both the quota and the queue hand out guards: dropping a guard gives back what it stands for, on every path.
#![forbid(unsafe_code)]

mod queue;
mod quota;
mod size;

pub use queue::{StartPermit, StartQueue, StartTicket};
pub use quota::{QuotaReservation, TeamQuota};
pub use size::{check_sandbox_size, check_template_size};

/// Why something may not be started now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The team has this many already, which is its limit.
    #[error("the team's limit of {0} is reached")]
    Quota(u32),
    /// The start queue is full; it has this many starts.
    #[error("{0} sandboxes are waiting to be started")]
    QueueFull(usize),
    /// The queue was closed because the server is shutting down.
    #[error("the server is shutting down")]
    Closed,
    /// The size is not allowed.
    #[error("{0}")]
    Size(String),
}
