//! Resource limits of the processes in a sandbox.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Maximum number of descriptors of a process, as containers and services have it elsewhere. What they take counts as the sandbox's memory.
pub const MAX_OPEN_FILES: u64 = 1 << 20;
/// Maximum number of signals queued for a user.
const MAX_QUEUED_SIGNALS: u64 = 4096;
/// How many of the sandbox's processes no single user can have: a fork bomb leaves room for envd, and for root to clean up.
const RESERVED_PIDS: u64 = 32;

/// Sets the limits of the calling process, which its children inherit. `pids` is the limit of processes of the whole sandbox,
/// `open_files` the limit of descriptors of a process.
///
/// # Errors
/// The kernel refused.
pub fn set_limits(pids: u64, open_files: u64) -> Result<(), Errno> {
    set(Resource::Nproc, pids.saturating_sub(RESERVED_PIDS).max(1))?;
    set(Resource::Nofile, open_files)?;
    set(Resource::Sigpending, MAX_QUEUED_SIGNALS)?;
    // 1, not 0: the kernel runs the host's crash handler for any other value when core_pattern is a pipe.
    set(Resource::Core, 1)
}

fn set(resource: Resource, value: u64) -> Result<(), Errno> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}
