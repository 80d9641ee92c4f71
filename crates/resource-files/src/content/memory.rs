//! Memory: `/proc/meminfo`, `/proc/swaps` and the files `memory.*` of a control group.

use std::fmt::Write;
use std::io;

use super::Source;
use crate::control::Fields;

/// Fields of `memory.stat` that are shown, in the kernel's order. Version 1 does not have all of them.
const STAT: [&str; 21] = [
    "anon",
    "file",
    "kernel",
    "kernel_stack",
    "pagetables",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "swapcached",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
];

/// `/proc/meminfo`.
pub(super) fn meminfo(source: &Source<'_>) -> io::Result<String> {
    let control = &source.control;
    let total = control.memory_limit()?.unwrap_or(control.host.memory);
    let used = control.memory_current()?.min(total);
    let stat = control.memory_stat()?;
    Ok(meminfo_of(total, used, &stat))
}

fn meminfo_of(total: u64, used: u64, stat: &Fields) -> String {
    let field = |name: &str| stat.get(name).copied().unwrap_or(0);
    let free = total - used;
    let shared = field("shmem");
    // What the kernel would drop before it kills a process.
    let reclaimable = field("active_file") + field("inactive_file") + field("slab_reclaimable");
    let slab = field("slab_reclaimable") + field("slab_unreclaimable");
    let lines = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", (free + reclaimable).min(total)),
        ("Buffers", 0),
        ("Cached", field("file").min(used)),
        ("SwapCached", 0),
        ("Active", field("active_anon") + field("active_file")),
        ("Inactive", field("inactive_anon") + field("inactive_file")),
        ("Active(anon)", field("active_anon")),
        ("Inactive(anon)", field("inactive_anon")),
        ("Active(file)", field("active_file")),
        ("Inactive(file)", field("inactive_file")),
        ("Unevictable", field("unevictable")),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", field("file_dirty")),
        ("Writeback", field("file_writeback")),
        ("AnonPages", field("anon")),
        ("Mapped", field("file_mapped")),
        ("Shmem", shared),
        ("KReclaimable", field("slab_reclaimable")),
        ("Slab", slab),
        ("SReclaimable", field("slab_reclaimable")),
        ("SUnreclaim", field("slab_unreclaimable")),
        ("KernelStack", field("kernel_stack")),
        ("PageTables", field("pagetables")),
        ("CommitLimit", total),
        ("Committed_AS", used),
        ("AnonHugePages", field("anon_thp")),
    ];
    let mut text = String::new();
    for (name, bytes) in lines {
        let name = format!("{name}:");
        let _ = writeln!(text, "{name:<16}{:>8} kB", bytes >> 10);
    }
    text
}

/// `/proc/swaps`: sandboxes have no swap.
pub(super) fn swaps(_: &Source<'_>) -> io::Result<String> {
    Ok("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into())
}

pub(super) fn max(source: &Source<'_>) -> io::Result<String> {
    let limit = source.control.memory_limit()?;
    Ok(limit.map_or_else(|| "max\n".into(), |limit| format!("{limit}\n")))
}

pub(super) fn current(source: &Source<'_>) -> io::Result<String> {
    Ok(format!("{}\n", source.control.memory_current()?))
}

pub(super) fn peak(source: &Source<'_>) -> io::Result<String> {
    Ok(format!("{}\n", source.control.memory_peak()?))
}

pub(super) fn stat(source: &Source<'_>) -> io::Result<String> {
    let stat = source.control.memory_stat()?;
    let mut text = String::new();
    for (name, value) in STAT.iter().filter_map(|name| Some((name, stat.get(*name)?))) {
        let _ = writeln!(text, "{name} {value}");
    }
    Ok(text)
}

pub(super) fn events(source: &Source<'_>) -> io::Result<String> {
    let (killed, reached) = source.control.memory_events()?;
    Ok(format!("low 0\nhigh 0\nmax {reached}\noom {killed}\noom_kill {killed}\noom_group_kill 0\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fields;

    #[test]
    fn meminfo_adds_up() {
        let stat = fields("anon 62914560\nfile 31457280\nactive_file 10485760\ninactive_file 20971520\n");
        let text = meminfo_of(1 << 30, 100 << 20, &stat);
        let kib = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
        };
        assert_eq!(kib("MemTotal"), 1 << 20);
        assert_eq!(kib("MemFree"), (1024 - 100) << 10);
        assert_eq!(kib("MemAvailable"), (1024 - 100 + 30) << 10);
        assert_eq!(kib("Cached"), 30 << 10);
        assert!(text.starts_with("MemTotal:        1048576 kB\n"), "{text}");
    }
}
