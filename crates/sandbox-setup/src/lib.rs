//! What every sandbox finds inside, the same in containers and VMs: the content of `/dev`, resource limits, and envd's place.
//! Used by the container engine on the host and by `guest-init` inside a VM.
//! Makes system calls only, except [`dev::populate`]: a child that shares its parent's memory may use the rest.
#![forbid(unsafe_code)]

pub mod dev;
mod limits;

pub use limits::{MAX_OPEN_FILES, set_limits};

/// Path of envd in every sandbox.
pub const ENVD_PATH: &str = "/usr/bin/envd";
/// Niceness of envd, so that it runs before user code (0) when both want the processor, and after the host's most urgent work
/// (-20). envd resets it for every process that it starts.
pub const ENVD_NICE: i32 = -10;
