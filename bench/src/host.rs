//! The host's description and its free memory, read from /proc.
//! A sandbox's cost in memory is the change of MemAvailable, which is what an operator runs out of.

use std::fs;

/// Processor, cores, memory and kernel in one line.
pub(crate) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = field("MemTotal") / (1024.0 * 1024.0);
    format!(
        "{}, {cores} cores, {memory:.0} GiB, Linux {}",
        model.unwrap_or("unknown processor"),
        kernel.trim()
    )
}

/// MemAvailable in MiB.
pub(crate) fn available_mib() -> f64 {
    field("MemAvailable") / 1024.0
}

/// A field of /proc/meminfo in KiB.
fn field(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}
