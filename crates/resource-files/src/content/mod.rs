//! The files of a sandbox's tree and what each contains. The tree is the same for all sandboxes: [`ENTRIES`].
//! Content is computed when it is read, from the sandbox's control group and the caller's time namespace.

mod load;
mod memory;
mod processors;

use std::io;

use crate::control::Control;
use crate::host::uptime_of;

pub(crate) use load::Loads;

/// What content is computed from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) control: Control<'a>,
    pub(crate) loads: &'a Loads,
    /// Number of the sandbox's range of ids.
    pub(crate) range: u32,
    /// The reading thread.
    pub(crate) pid: u32,
}

impl Source<'_> {
    fn uptime(&self) -> io::Result<f64> {
        uptime_of(self.pid)
    }
}

/// Computes the content of a file.
type Content = fn(&Source<'_>) -> io::Result<String>;

/// A directory or file of a sandbox's tree.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// Index of the directory that it is in.
    pub(crate) parent: usize,
    /// `None` for a directory.
    pub(crate) content: Option<Content>,
}

const fn directory(name: &'static str) -> Entry {
    Entry { name, parent: TOP, content: None }
}

const fn file(parent: usize, name: &'static str, content: Content) -> Entry {
    Entry { name, parent, content: Some(content) }
}

/// Index of the sandbox's own directory.
pub(crate) const TOP: usize = 0;
const PROC: usize = 1;
const CPU: usize = 2;
const CGROUP: usize = 3;

/// All directories and files of a sandbox. Their indexes are node numbers, so a server that is updated appends.
pub(crate) const ENTRIES: [Entry; 43] = [
    directory(""),
    directory("proc"),
    directory("cpu"),
    directory("cgroup"),
    file(PROC, "cpuinfo", processors::cpuinfo),
    file(PROC, "diskstats", |_| Ok(String::new())),
    file(PROC, "loadavg", load::average),
    file(PROC, "meminfo", memory::meminfo),
    file(PROC, "stat", processors::stat),
    file(PROC, "swaps", memory::swaps),
    file(PROC, "uptime", processors::uptime),
    file(CPU, "online", processors::list),
    file(CPU, "possible", processors::list),
    file(CPU, "present", processors::list),
    file(CGROUP, "cgroup.controllers", |_| Ok("cpu memory pids\n".into())),
    file(CGROUP, "cgroup.events", |_| Ok("populated 1\nfrozen 0\n".into())),
    file(CGROUP, "cgroup.freeze", |_| Ok("0\n".into())),
    file(CGROUP, "cgroup.max.depth", |_| Ok("0\n".into())),
    file(CGROUP, "cgroup.max.descendants", |_| Ok("0\n".into())),
    file(CGROUP, "cgroup.stat", |_| Ok("nr_descendants 0\nnr_dying_descendants 0\n".into())),
    file(CGROUP, "cgroup.subtree_control", |_| Ok("\n".into())),
    file(CGROUP, "cgroup.type", |_| Ok("domain\n".into())),
    file(CGROUP, "cpu.idle", |_| Ok("0\n".into())),
    file(CGROUP, "cpu.max", processors::max),
    file(CGROUP, "cpu.max.burst", |_| Ok("0\n".into())),
    file(CGROUP, "cpu.stat", processors::usage),
    file(CGROUP, "cpu.weight", |_| Ok("100\n".into())),
    file(CGROUP, "memory.current", memory::current),
    file(CGROUP, "memory.events", memory::events),
    file(CGROUP, "memory.events.local", memory::events),
    file(CGROUP, "memory.high", |_| Ok("max\n".into())),
    file(CGROUP, "memory.low", |_| Ok("0\n".into())),
    file(CGROUP, "memory.max", memory::max),
    file(CGROUP, "memory.min", |_| Ok("0\n".into())),
    file(CGROUP, "memory.oom.group", |_| Ok("0\n".into())),
    file(CGROUP, "memory.peak", memory::peak),
    file(CGROUP, "memory.stat", memory::stat),
    file(CGROUP, "memory.swap.current", |_| Ok("0\n".into())),
    file(CGROUP, "memory.swap.max", |_| Ok("0\n".into())),
    file(CGROUP, "pids.current", |source| source.control.pids("pids.current")),
    file(CGROUP, "pids.events", |source| source.control.pids("pids.events")),
    file(CGROUP, "pids.max", |source| source.control.pids("pids.max")),
    file(PROC, "cgroups", |_| Ok(CONTROLLERS.into())),
];

/// `/proc/cgroups`: every controller is in version 2, which has the number 0. Java (up to 23) uses no control group where one of these is
/// missing.
const CONTROLLERS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                           cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n";

/// Returns the index of the entry `name` in the directory with the index `parent`.
pub(crate) fn find(parent: usize, name: &[u8]) -> Option<usize> {
    (TOP + 1..ENTRIES.len())
        .find(|index| ENTRIES[*index].parent == parent && ENTRIES[*index].name.as_bytes() == name)
}
