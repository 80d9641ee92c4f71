//! Names and errors of volumes, the same in every engine.
//! A sandbox's volume has its id as name, a captured state's the state's.
//! How volumes are kept is `layers`' business.

use std::io;

use engine::{EngineError, SandboxId, SnapshotId};
use layers::{LayerError, VolumeName};

/// For `map_err`: names the step that a volume's error belongs to.
pub fn volume_error(step: &'static str) -> impl FnOnce(LayerError) -> EngineError {
    move |error| match error {
        LayerError::Full(_) => EngineError::Exhausted(error.to_string()),
        _ => EngineError::Kernel { step, source: io::Error::other(error) },
    }
}

/// The volume of a sandbox.
#[must_use]
pub fn volume_of(id: &SandboxId) -> VolumeName {
    id.as_str().parse().expect("sandbox ids are short and alphanumeric")
}

/// The volume of a captured state.
#[must_use]
pub fn state_volume(id: SnapshotId) -> VolumeName {
    id.to_string().parse().expect("UUIDs are hexadecimal digits and dashes")
}
