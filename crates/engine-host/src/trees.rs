//! Names and errors of trees, the same in every engine.
//! A sandbox's tree has its id as name, a captured state's the state's.
//! How trees are kept is `layers`' business.

use std::io;

use engine::{EngineError, SandboxId, SnapshotId};
use layers::{LayerError, TreeName};

/// For `map_err`: names the step that a tree's error belongs to.
pub fn tree_error(step: &'static str) -> impl FnOnce(LayerError) -> EngineError {
    move |error| match error {
        LayerError::Full(_) => EngineError::Exhausted(error.to_string()),
        _ => EngineError::Kernel { step, source: io::Error::other(error) },
    }
}

/// The tree of a sandbox.
#[must_use]
pub fn tree_of(id: &SandboxId) -> TreeName {
    id.as_str().parse().expect("sandbox ids are short and alphanumeric")
}

/// The tree of a captured state.
#[must_use]
pub fn snapshot_tree(id: SnapshotId) -> TreeName {
    id.to_string().parse().expect("UUIDs are hexadecimal digits and dashes")
}
