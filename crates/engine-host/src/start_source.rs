//! [`StartSource`]: what a sandbox is started from.

use engine::{RestoreMode, SnapshotId};

/// What a sandbox is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartSource {
    /// Its template alone.
    Template,
    /// A snapshot.
    Snapshot(SnapshotId, RestoreMode),
}
