//! `GET /metrics`: what the sandbox uses of its processors, memory and disk.
//! The figures are those of the sandbox's control group if it is visible. Otherwise, if `/init` has set limits, they are
//! the sums over all processes, since the sandbox has its own process namespace. Else they are the system's, as in a VM.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock;
use crate::state::lock;

const V2: &str = "/sys/fs/cgroup";

/// Processor time that was used until `at`.
#[derive(Debug, Clone, Copy)]
pub struct CpuSample {
    used: Duration,
    at: Instant,
}

/// Processors and memory of the sandbox, as `/init` set them.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processors.
    pub cpu_count: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that it may write, if there is a limit besides the size of its disk.
    pub disk: Option<u64>,
}

/// The body of the response.
#[derive(Debug, Serialize)]
pub struct Metrics {
    ts: i64,
    cpu_count: u64,
    cpu_used_pct: f64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

/// Reads the metrics. `last` is the sample of the previous request. Blocking.
pub fn read(last: &Mutex<Option<CpuSample>>, limits: Option<Limits>) -> Metrics {
    let cpu_count = limits.map_or_else(cpu_count, |limits| limits.cpu_count);
    let (cgroup_memory, cgroup_cpu) = (cgroup_memory(), cgroup_cpu());
    let is_visible = cgroup_memory.is_some() && cgroup_cpu.is_some();
    let processes = limits.filter(|_| !is_visible).map(|_| Processes::now());
    let (mem_total, mem_used, mem_cache) = cgroup_memory.unwrap_or_else(|| match (limits, &processes) {
        (Some(limits), Some(processes)) => (limits.memory, processes.memory.min(limits.memory), 0),
        _ => system_memory(),
    });
    let used = cgroup_cpu.or_else(|| processes.map_or_else(system_cpu, |processes| Some(processes.cpu)));
    let (disk_total, disk_used) = own_disk(disk(), limits.and_then(|limits| limits.disk));
    Metrics {
        ts: clock::unix_seconds(),
        cpu_count,
        cpu_used_pct: cpu_percent(last, used, cpu_count),
        mem_total_mib: mem_total >> 20,
        mem_used_mib: mem_used >> 20,
        mem_total,
        mem_used,
        mem_cache,
        disk_used,
        disk_total,
    }
}

/// Returns the share of all processors since the previous request, percent with two decimals.
fn cpu_percent(last: &Mutex<Option<CpuSample>>, used: Option<Duration>, cpu_count: u64) -> f64 {
    let Some(used) = used else { return 0.0 };
    let now = CpuSample { used, at: Instant::now() };
    let Some(before) = lock(last).replace(now) else { return 0.0 };
    let passed = now.at.duration_since(before.at).as_secs_f64();
    if passed <= 0.0 {
        return 0.0;
    }
    let share = now.used.saturating_sub(before.used).as_secs_f64() / passed;
    let cpus = u32::try_from(cpu_count.max(1)).map_or(1.0, f64::from);
    (share / cpus * 10_000.0).round() / 100.0
}

/// What all processes use in total.
#[derive(Debug, Clone, Copy, Default)]
struct Processes {
    /// Anonymous memory, bytes. Pages of files may be shared with other sandboxes and are not counted.
    memory: u64,
    /// Processor time, with that of ended children.
    cpu: Duration,
}

impl Processes {
    fn now() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
        pids.fold(Self::default(), |mut all, entry| {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let anonymous = read("status");
            let anonymous = anonymous.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let kib = anonymous.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            all.memory += kib.unwrap_or(0) << 10;
            let stat = read("stat");
            // The process's name before them may contain any character. Fields 14 to 17 are the user and system time of the process and of its children.
            let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
            let ticks: u64 = fields.skip(11).take(4).filter_map(|text| text.parse::<u64>().ok()).sum();
            all.cpu += Duration::from_millis(ticks * 10);
            all
        })
    }
}

fn cgroup_cpu() -> Option<Duration> {
    if let Some(usec) = field(&format!("{V2}/cpu.stat"), "usage_usec") {
        return Some(Duration::from_micros(usec));
    }
    if let Some(nanos) = number("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Some(Duration::from_nanos(nanos));
    }
    None
}

fn system_cpu() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // The fourth and fifth are idle time and waiting for disks.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum();
    Some(Duration::from_millis(busy * 10))
}

fn cpu_count() -> u64 {
    let online = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let limit = std::fs::read_to_string(format!("{V2}/cpu.max")).ok().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<u64>().ok()?.div_ceil(period.parse::<u64>().ok().filter(|&period| period > 0)?))
    });
    limit.map_or(online, |limit| limit.clamp(1, online))
}

/// Reads a field of /proc/meminfo, bytes.
fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Returns memory of the whole system: total, used without cache, and cache.
fn system_memory() -> (u64, u64, u64) {
    let total = meminfo("MemTotal");
    (total, total.saturating_sub(meminfo("MemAvailable")), meminfo("Cached"))
}

/// Returns the same of envd's control group.
fn cgroup_memory() -> Option<(u64, u64, u64)> {
    let (current, limit, cache) = number(&format!("{V2}/memory.current"))
        .map(|current| {
            (current, number(&format!("{V2}/memory.max")), field(&format!("{V2}/memory.stat"), "file"))
        })
        .or_else(|| {
            let v1 = "/sys/fs/cgroup/memory/memory";
            let current = number(&format!("{v1}.usage_in_bytes"))?;
            Some((
                current,
                number(&format!("{v1}.limit_in_bytes")),
                field(&format!("{v1}.stat"), "total_cache"),
            ))
        })?;
    let (cache, machine) = (cache.unwrap_or(0), meminfo("MemTotal"));
    Some((limit.unwrap_or(machine).min(machine), current.saturating_sub(cache), cache))
}

fn disk() -> (u64, u64) {
    let Ok(fs) = rustix::fs::statvfs("/") else { return (0, 0) };
    let total = fs.f_blocks.saturating_mul(fs.f_frsize);
    (total, total.saturating_sub(fs.f_bavail.saturating_mul(fs.f_frsize)))
}

/// Returns total and used bytes of a disk of which the sandbox may fill `limit`. If the disk is larger it is shared, and what it says of its
/// use is that of all who share it; the sandbox's own is known to the server only.
fn own_disk(disk: (u64, u64), limit: Option<u64>) -> (u64, u64) {
    limit.filter(|limit| *limit < disk.0).map_or(disk, |limit| (limit, 0))
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads the value of a line `name value`.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_plausible() {
        let last = Mutex::default();
        let metrics = read(&last, None);
        assert!(metrics.cpu_count >= 1 && metrics.mem_total > 0 && metrics.disk_total >= metrics.disk_used);
        assert_eq!(metrics.mem_total_mib, metrics.mem_total >> 20);
        assert!(lock(&last).is_some());
    }

    #[test]
    fn a_limit_below_the_size_of_the_disk_is_the_disk() {
        assert_eq!(own_disk((100, 70), Some(10)), (10, 0));
        assert_eq!(own_disk((100, 70), Some(110)), (100, 70));
        assert_eq!(own_disk((100, 70), None), (100, 70));
    }

    #[test]
    fn without_a_visible_control_group_limits_and_processes_are_used() {
        let metrics = read(&Mutex::default(), Some(Limits { cpu_count: 3, memory: 1 << 40, disk: None }));
        assert_eq!(metrics.cpu_count, 3);
        if cgroup_memory().is_none() {
            assert_eq!(metrics.mem_total, 1 << 40);
        }
        let processes = Processes::now();
        assert!(processes.memory > 0 && processes.memory <= meminfo("MemTotal"));
    }
}
