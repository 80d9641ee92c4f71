//! Files that show a sandbox its own size and use where the kernel would show the host's: `/proc/meminfo`, `cpuinfo`, `stat` and others,
//! `/sys/devices/system/cpu/online`, and on hosts with version 1 control groups a `/sys/fs/cgroup` with the names of version 2.
//! [`ResourceFiles`] mounts one FUSE file system for all sandboxes, with a directory for each, and starts a process that serves it
//! ([`serve`]). The process lives as long as anything is mounted from it, so sandboxes keep their files while the server restarts, and a
//! new server begins with a file system of its own.
//! Everything is read-only, and content follows the limits of the control group at any time.
#![forbid(unsafe_code)]

mod content;
mod control;
mod host;
mod mount;
mod nodes;
mod protocol;
mod rates;
mod serve;

pub use mount::ResourceFiles;
pub use serve::serve;
