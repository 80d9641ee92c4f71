//! What a later server needs to find a running machine again.
//! Written before the sandbox is announced to anyone.
//! Where records lie and how a process is proven is `engine_host`'s.

use std::path::PathBuf;

use engine_host::ProcessId;
use serde::{Deserialize, Serialize};

use crate::vm::command_line::VmSize;

/// A running sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    /// QEMU.
    #[serde(flatten)]
    pub(crate) process: ProcessId,
    /// First id of its range; QEMU runs with it.
    pub(crate) uid_base: u32,
    /// Name of its control group.
    pub(crate) cgroup: String,
    /// What it is.
    #[serde(flatten)]
    pub(crate) vm_spec: VmSpec,
}

/// What a machine was made of and with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmSpec {
    /// Name of the image of its template's files.
    pub(crate) base: String,
    /// The template's layers.
    pub(crate) layers: Vec<PathBuf>,
    /// What the guest has of the machine.
    #[serde(rename = "size")]
    pub(crate) size: VmSize,
    /// Size of the private disk, MiB.
    pub(crate) disk_mib: u32,
}
