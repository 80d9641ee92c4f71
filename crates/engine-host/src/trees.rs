//! Names of the writable trees of sandboxes and snapshots, and their errors as [`EngineError`]; the same in every engine.

use std::io;

use engine::{EngineError, SandboxId, SnapshotId};
use layers::{LayerError, TreeName};

/// Returns a function for `map_err` that names the step in which an error of a writable tree happened.
pub fn tree_error(step: &'static str) -> impl FnOnce(LayerError) -> EngineError {
    move |error| match error {
        LayerError::Full(_) => EngineError::Exhausted(error.to_string()),
        _ => EngineError::Kernel { step, source: io::Error::other(error) },
    }
}

/// Returns the name of a sandbox's tree: its id.
#[must_use]
pub fn tree_of(id: &SandboxId) -> TreeName {
    id.as_str().parse().expect("sandbox ids are short and alphanumeric")
}

/// Returns the name of a snapshot's tree: its id.
#[must_use]
pub fn snapshot_tree(id: SnapshotId) -> TreeName {
    id.to_string().parse().expect("UUIDs are hexadecimal digits and dashes")
}
