//! The plain data that engines take and return: specs of starts, results of captures, capabilities of an engine.
//! Sizes are in MiB, as in the wire contract, unless a name says bytes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ids::SandboxId;
use net::EgressPolicy;
use serde::{Deserialize, Serialize};

/// A template as an engine sees it: read-only layers and the engine that runs them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateImage {
    /// Layer directories, uppermost first. Files are stored with the owners seen inside the sandbox: root is 0.
    pub layers: Vec<PathBuf>,
    /// Name of the engine that runs its sandboxes; `None` is the server's default engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Maximum number of processes and threads of a sandbox where nothing else is configured.
pub const DEFAULT_PIDS: u32 = 2048;

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processors.
    pub cpu_count: u32,
    /// Memory limit, MiB.
    pub memory_mib: u32,
    /// Disk limit of the sandbox, MiB; enforced if the engine's [`Capabilities`] say so.
    pub disk_mib: u32,
    /// Maximum number of processes and threads at once.
    pub pids: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_count: 2, memory_mib: 1024, disk_mib: 10_240, pids: DEFAULT_PIDS }
    }
}

/// A directory of the host that a sandbox has mounted and shares with others.
#[derive(Debug, Clone)]
pub struct VolumeMount {
    /// The directory, with owners as seen inside.
    pub source: Arc<OwnedFd>,
    /// Where it is mounted: absolute, clean, without a slash at the end.
    pub path: String,
    /// Whether the sandbox may only read.
    pub read_only: bool,
}

/// Everything needed to start a sandbox.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// Its id. Never used twice on a host.
    pub id: SandboxId,
    /// What it starts from.
    pub template: TemplateImage,
    /// Its limits.
    pub resources: Resources,
    /// Host name seen inside.
    pub hostname: String,
    /// Policy for outgoing traffic, in force from the first packet on.
    pub egress: EgressPolicy,
    /// Volumes, mounted before any of its programs runs. A restore mounts the volumes of the snapshot's paths from here.
    pub volumes: Vec<VolumeMount>,
    /// Whether more sandboxes of this template with these limits are expected, so that the engine may prepare for them.
    pub recurring: bool,
}

/// Whether a restore brings back memory or boots from the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// The captured processes continue.
    Memory,
    /// A cold start from the captured files.
    Disk,
}

/// What a capture has saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Whether the snapshot has memory.
    pub memory: bool,
    /// Size of the memory image, bytes.
    pub memory_bytes: u64,
    /// How long the sandbox was stopped for the capture.
    pub stopped: std::time::Duration,
}

/// How strongly a sandbox is isolated from the host. Shown to users, so never overstated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The host's kernel, with namespaces, capabilities and seccomp between it and the sandbox.
    SharedKernel,
    /// A kernel of its own behind hardware virtualisation.
    HardwareVm,
    /// A kernel of its own in software emulation.
    EmulatedVm,
}

/// What an engine can do besides starting and killing sandboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// It captures and restores memory.
    pub memory_snapshots: bool,
    /// It enforces [`Resources::disk_mib`].
    pub disk_limit: bool,
    /// It mounts [`StartSpec::volumes`].
    #[serde(default)]
    pub volumes: bool,
    /// It enforces the limits on processors, memory and processes.
    pub resource_limits: bool,
}

/// An engine's name, isolation and capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// `container` or `microvm`.
    pub name: &'static str,
    /// What isolates a sandbox from the host.
    pub isolation: Isolation,
    /// One sentence on the isolation, for logs, `doctor` and the API.
    pub summary: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// PID 1 exited with this code.
    Exited(i32),
    /// PID 1 was killed by this signal.
    Signalled(i32),
    /// Unknown: it ended while no server was watching.
    Unknown,
}

/// Processes of a sandbox that the kernel has killed because a memory limit was reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryKill {
    /// How many, since the server watches the sandbox.
    pub count: u64,
    /// Name of the last one. Untrusted.
    pub process: String,
    /// Its id on the host.
    pub host_pid: u32,
}

/// What a sandbox uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time since it started, microseconds.
    pub cpu_usec: u64,
    /// Memory charged to it now, bytes, without page cache.
    pub memory_bytes: u64,
    /// Page cache charged to it now, bytes.
    pub cache_bytes: u64,
    /// Memory limit, bytes.
    pub memory_limit_bytes: u64,
    /// Number of processes and threads now.
    pub pids: u64,
    /// Size of what it has written, bytes.
    pub disk_bytes: u64,
    /// Limit of that, bytes; 0 if the engine does not know the size at once.
    pub disk_limit_bytes: u64,
}
