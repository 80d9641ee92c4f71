//! Measures this host for the route `/nodes`: processors, memory, disk, from `/proc`.
//! A figure that cannot be read is 0 or empty. Processor use is the average since the last measurement.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::{Host, HostDisk, HostProbe, Processor};
use parking_lot::Mutex;

/// Returns a probe of this host, with the disk that holds the directory.
pub(crate) fn probe(data_dir: &Path) -> HostProbe {
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let last = Mutex::new(processor_time());
    HostProbe(Arc::new(move || measure(&data_dir, &last)))
}

fn measure(data_dir: &Path, last: &Mutex<(u64, u64)>) -> Host {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| number(&memory, name) << 10;
    Host {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_count: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        cpu_percent: percent(last),
        memory_total_bytes: kib("MemTotal"),
        memory_used_bytes: kib("MemTotal").saturating_sub(kib("MemAvailable")),
        huge_pages_total: number(&memory, "HugePages_Total"),
        huge_pages_used: number(&memory, "HugePages_Total").saturating_sub(number(&memory, "HugePages_Free")),
        huge_pages_reserved: number(&memory, "HugePages_Rsvd"),
        huge_page_size_bytes: kib("Hugepagesize"),
        disks: disk(data_dir).into_iter().collect(),
        processor: processor(),
    }
}

/// Returns a field of `/proc/meminfo` in that field's unit.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Returns the busy and the total processor time since the host booted, in ticks.
fn processor_time() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .map(|line| line.split_whitespace().skip(1).take(8).filter_map(|ticks| ticks.parse().ok()).collect())
        .unwrap_or_default();
    let all: u64 = ticks.iter().sum();
    // The fourth is idle, the fifth waiting for disks.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

fn percent(last: &Mutex<(u64, u64)>) -> u32 {
    let now = processor_time();
    let before = std::mem::replace(&mut *last.lock(), now);
    let (busy, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
    u32::try_from((busy * 100).checked_div(all).unwrap_or(0)).unwrap_or(100)
}

fn processor() -> Processor {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    Processor {
        family: field("cpu family"),
        model: field("model"),
        name: field("model name"),
        architecture: std::env::consts::ARCH.to_owned(),
    }
}

/// Returns the file system that holds a directory.
fn disk(dir: &Path) -> Option<HostDisk> {
    let usage = rustix::fs::statvfs(dir).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (mount_point, device, filesystem_type) = mounts
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let mount_point = PathBuf::from(head.split(' ').nth(4)?);
            let mut tail = tail.split(' ');
            let (kind, device) = (tail.next()?, tail.next()?);
            dir.starts_with(&mount_point).then(|| (mount_point, device.to_owned(), kind.to_owned()))
        })
        // The innermost mount; of several on one mount point the last, which covers the others.
        .max_by_key(|(mount_point, ..)| mount_point.components().count())?;
    Some(HostDisk {
        mount_point: mount_point.display().to_string(),
        device,
        filesystem_type,
        used_bytes: (usage.f_blocks - usage.f_bfree) * usage.f_frsize,
        total_bytes: usage.f_blocks * usage.f_frsize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_measured() {
        let host = (probe(Path::new("/")).0)();
        assert!(
            !host.name.is_empty() && host.cpu_count > 0 && host.memory_total_bytes > host.memory_used_bytes
        );
        assert_eq!(host.disks[0].mount_point, "/");
        assert!(host.disks[0].total_bytes >= host.disks[0].used_bytes && host.cpu_percent <= 100);
    }
}
