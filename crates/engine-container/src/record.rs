//! What a later server needs to find a running container again.
//! Written before the sandbox is announced to anyone.
//! Where records lie and how a process is proven is `engine_host`'s.

use engine_host::ProcessId;
use serde::{Deserialize, Serialize};

/// A running sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// PID 1, as the host sees it.
    #[serde(flatten)]
    pub(crate) process: ProcessId,
    /// First id of its range.
    pub(crate) uid_base: u32,
    /// Name of its control group.
    pub(crate) cgroup: String,
    /// Name of the agent's layer it runs from.
    pub(crate) agent: String,
    /// What its processes see as the id of their boot.
    pub(crate) inner_boot: String,
}
