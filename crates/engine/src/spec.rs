//! What goes into an engine and what comes out, as plain data.
//! Sizes are in MiB, as the wire contract has them.
//! Nothing here knows how an engine works.

use std::path::PathBuf;

use ids::SandboxId;
use net::EgressPolicy;
use serde::{Deserialize, Serialize};

/// A template as an engine sees it: read-only layers, and who shall run them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateImage {
    /// Layer directories, uppermost first. Owners are stored as inside the sandbox: root is 0.
    pub layers: Vec<PathBuf>,
    /// Name of the engine that runs its sandboxes; none leaves it to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time, in whole processors.
    pub cpu_count: u32,
    /// Memory limit, MiB.
    pub memory_mib: u32,
    /// Limit of the writable layer, MiB; what the engine can enforce is in its [`Capabilities`].
    pub disk_mib: u32,
    /// Most processes and threads at once.
    pub pids: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_count: 2, memory_mib: 1024, disk_mib: 10_240, pids: 4096 }
    }
}

/// Everything needed to start a sandbox.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// Its id, unique on this machine for ever.
    pub id: SandboxId,
    /// What it starts from.
    pub template: TemplateImage,
    /// Its limits.
    pub resources: Resources,
    /// Host name seen inside.
    pub hostname: String,
    /// Rules for outgoing traffic from the first packet on.
    pub egress: EgressPolicy,
    /// Whether more sandboxes of this template with these limits are to be expected, so that preparing for them pays.
    pub recurring: bool,
}

/// How a captured state is brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revival {
    /// Processes go on where they stood.
    Memory,
    /// A cold start on the captured files.
    Disk,
}

/// A captured state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// Whether the memory is in it.
    pub memory: bool,
    /// Bytes of the memory image.
    pub memory_bytes: u64,
    /// How long the sandbox stood still for it.
    pub stopped: std::time::Duration,
}

/// How strongly a sandbox is kept from the host: shown to users, never rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The host's kernel is shared; namespaces, capabilities and seccomp stand between.
    SharedKernel,
    /// An own kernel behind hardware virtualisation.
    HardwareVm,
    /// An own kernel in software emulation.
    EmulatedVm,
}

/// What an engine can do beyond starting and killing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Captures and restores memory.
    pub memory_snapshots: bool,
    /// Enforces [`Resources::disk_mib`].
    pub disk_limit: bool,
    /// Enforces cpu, memory and pids limits.
    pub resource_limits: bool,
}

/// An engine's name and promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// `container` or `microvm`.
    pub name: &'static str,
    /// What stands between a sandbox and the host.
    pub isolation: Isolation,
    /// One honest sentence for logs, `doctor` and the API.
    pub summary: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// Why a sandbox is no longer running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// PID 1 ended by itself with this code.
    Exited(i32),
    /// PID 1 was ended by this signal.
    Signalled(i32),
    /// It is gone and how is not known (it ended while no server was watching).
    Unknown,
}

/// What a sandbox uses, in bytes and microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time since the start, microseconds.
    pub cpu_usec: u64,
    /// Memory charged now, bytes, without page cache.
    pub memory_bytes: u64,
    /// Page cache charged now, bytes.
    pub cache_bytes: u64,
    /// Memory limit, bytes.
    pub memory_limit_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
}
