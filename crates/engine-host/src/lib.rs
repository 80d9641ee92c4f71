//! What any engine needs of the machine: control groups, ranges of user ids, names for kernel objects, proof that a process is
//! still the same, news of scarce memory. An engine takes from here what it shares with the others and nothing more.
//! Names contain the data directory's fingerprint, so two servers never touch each other's objects.

pub mod cgroup;
mod dirs;
mod holders;
mod life;
mod pressure;
mod process;
mod records;
mod remains;
mod running;
mod trees;
pub mod uids;

pub use cgroup::{Entrance, Group, Hierarchies};
pub use dirs::{
    RunDir, check_kernel, check_root, fingerprint, instance_name, make_dir, make_private_dir,
    raise_open_files,
};
pub use life::Life;
pub use pressure::memory_pressure;
pub use process::{ProcessId, exit_reason};
pub use records::Records;
pub use remains::{remove_groups, remove_others};
pub use running::Running;
pub use trees::{snapshot_tree, tree_error, tree_of};
pub use uids::UidRanges;
