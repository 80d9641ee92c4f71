//! Figures of the server process, read from `/proc/self` at each scrape. One that cannot be read is not updated.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::definitions::{CPU_SECONDS, MAX_DESCRIPTORS, OPEN_DESCRIPTORS, RESIDENT_MEMORY};
use crate::record::set;

pub(crate) fn update() {
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        set(&OPEN_DESCRIPTORS, Vec::new(), (descriptors.count() as u64).saturating_sub(1));
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        set(&MAX_DESCRIPTORS, Vec::new(), limit);
    }
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()) {
        set(&RESIDENT_MEMORY, Vec::new(), pages * rustix::param::page_size() as u64);
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(ticks) = cpu_ticks(&stat) {
        let seconds = ticks / rustix::param::clock_ticks_per_second();
        metrics::counter!(CPU_SECONDS.name).absolute(seconds);
    }
}

/// User and system time of a `/proc/<pid>/stat`, whose second field may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::cpu_ticks;

    #[test]
    fn times_are_found_behind_any_program_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 21 4 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_ticks(stat), Some(25));
        assert_eq!(cpu_ticks("7 (a"), None);
    }
}
