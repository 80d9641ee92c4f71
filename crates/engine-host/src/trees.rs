//! Names of the writable trees of sandboxes and snapshots, and their errors as [`EngineError`]; the same in every engine.

use std::io;

use engine::{DISK_FULL, EngineError, SandboxId, SnapshotId};
use layers::{LayerError, TreeName};

/// Returns a function for `map_err` that names the step in which an error of a writable tree happened.
pub fn tree_error(step: &'static str) -> impl FnOnce(LayerError) -> EngineError {
    move |error| match error {
        LayerError::Full(_) => no_room(),
        LayerError::Io { ref source, .. } | LayerError::Tree { ref source, .. } if is_full(source) => {
            no_room()
        }
        _ => EngineError::Kernel { step, source: io::Error::other(error) },
    }
}

/// Whether the disk, or the quota of all trees, is used up.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn no_room() -> EngineError {
    EngineError::Exhausted(DISK_FULL.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_lack_of_capacity() {
        let of = |kind: io::ErrorKind| {
            tree_error("make a tree")(LayerError::Io { path: "/secret".into(), source: kind.into() })
        };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = of(kind);
            assert!(matches!(&error, EngineError::Exhausted(text) if !text.contains("secret")), "{error}");
        }
        assert!(matches!(of(io::ErrorKind::PermissionDenied), EngineError::Kernel { .. }));
    }
}
