//! The record of a running sandbox, from which a later server finds its QEMU process again.
//!
//! Written before the start of the sandbox is reported to anyone. `engine_host` stores records and
//! proves that a process is still the recorded one.

use std::path::PathBuf;

use engine_host::ProcessId;
use serde::{Deserialize, Serialize};

use crate::vm::command_line::VmSize;

/// The record of a running sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    /// The QEMU process.
    #[serde(flatten)]
    pub(crate) process: ProcessId,
    /// First id of the sandbox's range; QEMU runs as this user.
    pub(crate) uid_base: u32,
    /// Name of the sandbox's control group.
    pub(crate) cgroup: String,
    /// What the VM consists of.
    #[serde(flatten)]
    pub(crate) vm_spec: VmSpec,
}

/// What a VM consists of, apart from the content of its disk and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmSpec {
    /// Key of its base image.
    pub(crate) base: String,
    /// Layers of its template.
    pub(crate) layers: Vec<PathBuf>,
    /// Processors and memory.
    #[serde(rename = "shape")]
    pub(crate) size: VmSize,
    /// Size of the private disk, MiB.
    pub(crate) disk_mib: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Later versions of the server must find sandboxes of earlier ones.
    #[test]
    fn records_keep_their_format() {
        let process = r#""pid":7,"start_time":9,"boot_id":"x""#;
        let text = format!(
            r#"{{{process},"uid_base":5,"cgroup":"s5","base":"b","layers":["/l"],"shape":{{"cpus":2,"memory_mib":512}},"disk_mib":64}}"#
        );
        let record: SandboxRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(record.vm_spec.size, VmSize { cpus: 2, memory_mib: 512 });
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
