//! What every engine needs from the host: its directories and records ([`HostResources`]), control groups, ranges of user ids
//! ([`HostLease`] holds one of each for a sandbox), following a sandbox's process ([`MainProcess`]), proof that a pid still refers to the
//! same process, and the sweep of resources that an earlier server left over.
//! Names of kernel objects contain the data directory's fingerprint, so two servers never touch each other's objects.

pub mod cgroup;
mod dirs;
mod host_lease;
mod host_limits;
mod host_resources;
mod lock_holders;
mod main_process;
mod memory_kills;
mod memory_pressure;
mod memory_room;
mod process;
mod records;
mod running_sandboxes;
mod start_source;
mod sweep;
mod trees;
pub mod uids;

pub use cgroup::{Group, GroupEntrance, Hierarchies, HostTotals, Reserve};
pub use dirs::{RunDir, fingerprint, instance_name, make_dir, make_private_dir};
pub use host_lease::{HostLease, group_name, uid_base_of};
pub use host_limits::raise_host_limits;
pub use host_resources::{HostResources, check_host};
pub use main_process::MainProcess;
pub use memory_kills::MemoryKills;
pub use memory_pressure::memory_pressure;
pub use memory_room::MemoryRoom;
pub use process::{ProcessId, exit_reason};
pub use records::Records;
pub use running_sandboxes::RunningSandboxes;
pub use start_source::StartSource;
pub use sweep::{remove_stale_groups, remove_unlisted};
pub use trees::{snapshot_tree, tree_error, tree_of};
pub use uids::UidRanges;
