//! [`SandboxRecord`]: what a later server needs to adopt a running container. Written before the start is announced.

use engine_host::ProcessId;
use serde::{Deserialize, Serialize};

use crate::volumes::MountedVolume;

/// The record of a running sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    /// PID 1, as the host sees it.
    #[serde(flatten)]
    pub(crate) process: ProcessId,
    /// First id of its range of user ids.
    pub(crate) uid_base: u32,
    /// Name of its control group.
    pub(crate) cgroup: String,
    /// Name of the envd layer that it runs from.
    #[serde(rename = "agent")]
    pub(crate) envd_layer: String,
    /// The boot id that its processes see.
    pub(crate) inner_boot: String,
    /// Whether it has the files in which it sees its own size.
    #[serde(default)]
    pub(crate) has_resource_files: bool,
    /// Volumes that it has mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<MountedVolume>,
}
