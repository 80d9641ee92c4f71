//! [`HostFacts`]: what the content of files needs of the host. Read once: it does not change while the host runs.

use std::fs;
use std::io;

use engine_host::HostTotals;

/// Size of the host.
#[derive(Debug)]
pub(crate) struct HostFacts {
    /// Memory, bytes.
    pub(crate) memory: u64,
    /// Processors.
    pub(crate) processors: u32,
    /// `/proc/cpuinfo`.
    pub(crate) cpuinfo: String,
}

impl HostFacts {
    /// Reads them.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub(crate) fn read() -> io::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let online = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        Ok(Self {
            memory: HostTotals::read()?.memory,
            processors: u32::try_from(online).unwrap_or(1).max(1),
            cpuinfo,
        })
    }
}

/// Returns the time since boot in the time namespace of the process `pid`, seconds.
///
/// # Errors
/// The process is gone, or this kernel has no time namespaces.
pub(crate) fn uptime_of(pid: u32) -> io::Result<f64> {
    let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Ok((seconds(now.tv_sec, now.tv_nsec) + boottime_offset(&offsets)).max(0.0))
}

/// Returns the offset of the clock `boottime` in a file `timens_offsets`.
fn boottime_offset(offsets: &str) -> f64 {
    let line = offsets.lines().find_map(|line| line.strip_prefix("boottime"));
    let mut numbers = line.unwrap_or_default().split_whitespace().map(|word| word.parse().unwrap_or(0));
    seconds(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn seconds(whole: i64, nanoseconds: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "an uptime is far below 2^52 seconds")]
    let (whole, nanoseconds) = (whole as f64, nanoseconds as f64);
    whole + nanoseconds / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace_are_subtracted() {
        let text = "monotonic       -1000         0\nboottime        -2000  500000000\n";
        assert!((boottime_offset(text) + 1999.5).abs() < 1e-9);
        assert!(uptime_of(std::process::id()).unwrap() > 0.0);
    }
}
