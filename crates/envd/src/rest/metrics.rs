//! `GET /metrics`: what the sandbox uses, by its own control group where that is visible.
//! Where it is not, but `/init` told the limits, by adding up the processes, which are the sandbox's own: it has its own
//! process namespace. Without either it is the machine's figures, as in a virtual machine.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock;
use crate::state::lock;

const V2: &str = "/sys/fs/cgroup";

/// CPU time used up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct CpuSample {
    used: Duration,
    at: Instant,
}

/// What the sandbox was given, as `/init` told.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// Processors.
    pub cpu_count: u64,
    /// Bytes of memory.
    pub memory: u64,
}

/// The response's body.
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

/// Reads everything. `last` is the sample of the call before. Blocking.
pub fn read(last: &Mutex<Option<CpuSample>>, given: Option<Given>) -> Metrics {
    let cpu_count = given.map_or_else(cpu_count, |given| given.cpu_count);
    let processes = given.map(|_| Processes::now());
    let (mem_total, mem_used, mem_cache) = own_memory().unwrap_or_else(|| match (given, &processes) {
        (Some(given), Some(processes)) => (given.memory, processes.memory.min(given.memory), 0),
        _ => machine_memory(),
    });
    let used = own_cpu().or_else(|| processes.map_or_else(machine_cpu, |processes| Some(processes.cpu)));
    let (disk_total, disk_used) = disk();
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

/// Share of all CPUs since the call before, with two decimals.
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

/// What all processes together use.
#[derive(Debug, Clone, Copy, Default)]
struct Processes {
    /// Anonymous memory, bytes. Pages of files are shared with other sandboxes and not counted.
    memory: u64,
    /// Processor time, that of their ended children included.
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
            // The name before them may hold anything; user, system, children's user and system are fields 14 to 17.
            let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
            let ticks: u64 = fields.skip(11).take(4).filter_map(|text| text.parse::<u64>().ok()).sum();
            all.cpu += Duration::from_millis(ticks * 10);
            all
        })
    }
}

fn own_cpu() -> Option<Duration> {
    if let Some(usec) = field(&format!("{V2}/cpu.stat"), "usage_usec") {
        return Some(Duration::from_micros(usec));
    }
    if let Some(nanos) = number("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Some(Duration::from_nanos(nanos));
    }
    None
}

fn machine_cpu() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // Idle and waiting for disks are the fourth and fifth.
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

/// A field of /proc/meminfo, bytes.
fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Total, used without cache, and cache, of the whole machine.
fn machine_memory() -> (u64, u64, u64) {
    let total = meminfo("MemTotal");
    (total, total.saturating_sub(meminfo("MemAvailable")), meminfo("Cached"))
}

/// The same of our own control group.
fn own_memory() -> Option<(u64, u64, u64)> {
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

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line `name value`.
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
    fn without_a_visible_group_the_given_limits_and_the_processes_count() {
        let metrics = read(&Mutex::default(), Some(Given { cpu_count: 3, memory: 1 << 40 }));
        assert_eq!(metrics.cpu_count, 3);
        if own_memory().is_none() {
            assert_eq!(metrics.mem_total, 1 << 40);
        }
        let processes = Processes::now();
        assert!(processes.memory > 0 && processes.memory <= meminfo("MemTotal"));
    }
}
