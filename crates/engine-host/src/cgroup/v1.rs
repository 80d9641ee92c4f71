//! Version 1 controllers, one hierarchy each, for limits and accounting only.
//! Processes join by being cloned from a thread inside the group, because writing to `cgroup.procs` can take milliseconds.
//! File names and units are the kernel's.

use std::fs;
use std::io;
use std::path::Path;

use engine::{Resources, Stats};

use super::{CPU_PERIOD_USEC, read_field, read_number};

/// A controller that the engines use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Processor time limits.
    Cpu,
    /// Processor time accounting.
    CpuAcct,
    /// Memory.
    Memory,
    /// Number of processes.
    Pids,
}

impl Controller {
    /// Every controller.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::CpuAcct, Self::Memory, Self::Pids];
    /// The controllers that limits need.
    pub const LIMITING: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// Returns the kernel's name of the controller.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// Sets this controller's limits on the group at `path`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn limit(self, path: &Path, resources: &Resources) -> io::Result<()> {
        match self {
            Self::Cpu => {
                fs::write(path.join("cpu.cfs_period_us"), CPU_PERIOD_USEC.to_string())?;
                let wanted = CPU_PERIOD_USEC * u64::from(resources.cpu_count);
                // The kernel refuses more than what all sandboxes may have together. Without such a limit the file has -1.
                let together = path.parent().map(|all| read_number(&all.join("cpu.cfs_quota_us")));
                let quota = together.and_then(Result::ok).map_or(wanted, |together| together.min(wanted));
                fs::write(path.join("cpu.cfs_quota_us"), quota.to_string())
            }
            Self::CpuAcct => Ok(()),
            Self::Memory => {
                let bytes = u64::from(resources.memory_mib) << 20;
                // Socket buffers are the sandbox's memory too; version 1 counts them separately, if at all.
                let _ = fs::write(path.join("memory.kmem.tcp.limit_in_bytes"), bytes.to_string());
                fs::write(path.join("memory.limit_in_bytes"), bytes.to_string())
            }
            Self::Pids => fs::write(path.join("pids.max"), resources.pids.to_string()),
        }
    }

    /// Adds what this controller knows of the group at `path` to `stats`.
    ///
    /// # Errors
    /// The group cannot be read.
    pub fn add_stats(self, path: &Path, stats: &mut Stats) -> io::Result<()> {
        match self {
            Self::Cpu => {}
            Self::CpuAcct => stats.cpu_usec = read_number(&path.join("cpuacct.usage"))? / 1000,
            Self::Memory => {
                let fields = path.join("memory.stat");
                stats.memory_bytes = read_field(&fields, "rss")?;
                stats.cache_bytes = read_field(&fields, "cache")?;
                stats.memory_limit_bytes = read_number(&path.join("memory.limit_in_bytes"))?;
            }
            Self::Pids => stats.pids = read_number(&path.join("pids.current"))?,
        }
        Ok(())
    }
}
