//! [`Reserve`]: what the host keeps for itself and for the server. All sandboxes of a server together get the rest, as limits of the control group that
//! contains theirs, so that the kernel kills and slows down inside sandboxes and nowhere else.

use std::fs;
use std::io;
use std::path::Path;

use super::CPU_PERIOD_USEC;
use super::hierarchy::Hierarchies;
use super::v1::Controller;

const MIB: u64 = 1 << 20;

/// The part of the host's resources that sandboxes cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Memory, bytes.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Processors, in thousandths.
    pub cpu_milli: u64,
}

/// The resources of the host.
#[derive(Debug, Clone, Copy)]
pub struct HostTotals {
    /// Memory, bytes.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Processors, in thousandths.
    pub cpu_milli: u64,
}

impl HostTotals {
    /// Reads them.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn read() -> io::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let total =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let kib: u64 = total.and_then(|text| text.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let number = |path: &str| -> io::Result<u64> {
            fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
        };
        let tasks = number("/proc/sys/kernel/threads-max")?.min(number("/proc/sys/kernel/pid_max")?);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        Ok(Self { memory: kib << 10, tasks, cpu_milli: processors * 1000 })
    }
}

impl Reserve {
    /// Returns the reserve of a host: a sixteenth of the memory, from 256 MiB to 4 GiB; a quarter of the tasks; a fortieth of the processors' time,
    /// at least a twentieth of one processor.
    #[must_use]
    pub fn of(host: &HostTotals) -> Self {
        let memory = (host.memory / 16).clamp(256 * MIB, 4096 * MIB).min(host.memory / 2);
        Self { memory, tasks: host.tasks / 4, cpu_milli: (host.cpu_milli / 40).max(50) }
    }
}

/// Limits the sandboxes of a server together to what the reserve leaves. A limit that cannot be set is returned with its error; the others are set.
pub(super) fn limit_together(hierarchies: &Hierarchies, host: &HostTotals) -> Vec<(String, io::Error)> {
    let reserve = Reserve::of(host);
    let (memory, tasks) = (host.memory - reserve.memory, host.tasks - reserve.tasks);
    let quota = CPU_PERIOD_USEC * (host.cpu_milli - reserve.cpu_milli) / 1000;
    let mut failed = Vec::new();
    let mut write = |dir: &Path, file: &str, value: String| {
        if let Err(error) = fs::write(dir.join(file), value) {
            failed.push((file.to_owned(), error));
        }
    };
    if hierarchies.v1.is_empty() {
        write(&hierarchies.unified, "memory.max", memory.to_string());
        write(&hierarchies.unified, "pids.max", tasks.to_string());
        write(&hierarchies.unified, "cpu.max", format!("{quota} {CPU_PERIOD_USEC}"));
        return failed;
    }
    for (controller, dir) in &hierarchies.v1 {
        match controller {
            Controller::Memory => write(dir, "memory.limit_in_bytes", memory.to_string()),
            Controller::Pids => write(dir, "pids.max", tasks.to_string()),
            Controller::Cpu => {
                write(dir, "cpu.cfs_period_us", CPU_PERIOD_USEC.to_string());
                write(dir, "cpu.cfs_quota_us", quota.to_string());
            }
            Controller::CpuAcct => {}
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_keeps_something_and_gives_most() {
        for (memory, processors) in [(512 * MIB, 1), (24 << 30, 2), (1 << 40, 128)] {
            let host = HostTotals { memory, tasks: 30_000, cpu_milli: processors * 1000 };
            let reserve = Reserve::of(&host);
            assert!(reserve.memory >= 256 * MIB && reserve.memory <= host.memory / 2, "{host:?}");
            assert!(reserve.cpu_milli >= 50 && reserve.cpu_milli <= host.cpu_milli / 20, "{host:?}");
            assert_eq!(reserve.tasks, 7_500);
        }
    }
}
