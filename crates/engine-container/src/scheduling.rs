//! How threads are scheduled, as far as CRIU does not capture it: the processors that they may use, and their I/O priority.
//! Both are kept beside the image and set again before the restored threads run.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::threads::{Thread, threads_of};

/// The scheduling of one thread that is not as usual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scheduling {
    /// Its id in the sandbox.
    thread: i32,
    /// The processors that it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    processors: Option<Vec<u32>>,
    /// Class and level, as `ioprio_get` returns them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_priority: Option<u32>,
}

/// Returns what is unusual of the threads in the control group at `group`. Usual is what this server has itself.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn unusual_scheduling(group: &Path) -> io::Result<Vec<Scheduling>> {
    let usual = sched_getaffinity(None)?;
    let of = |thread: Thread| {
        let id = Pid::from_raw(thread.id)?;
        let processors = sched_getaffinity(Some(id)).ok().filter(|set| *set != usual).map(|set| listed(&set));
        let io_priority = io_priority(id).filter(|priority| is_unprivileged(*priority));
        (processors.is_some() || io_priority.is_some()).then_some(())?;
        Some(Scheduling { thread: thread.inner_id()?, processors, io_priority })
    };
    Ok(threads_of(group)?.into_iter().filter_map(of).collect())
}

/// Gives the threads in the control group at `group` the scheduling that they were captured with. Processors that this host does not have
/// are left out; a thread that has none left may use all.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn restore_scheduling(group: &Path, unusual: &[Scheduling]) -> io::Result<()> {
    if unusual.is_empty() {
        return Ok(());
    }
    let threads = threads_of(group)?.into_iter();
    let by_inner_id: HashMap<i32, Thread> =
        threads.filter_map(|thread| Some((thread.inner_id()?, thread))).collect();
    for scheduling in unusual {
        let thread = by_inner_id.get(&scheduling.thread);
        let Some(id) = thread.and_then(|thread| Pid::from_raw(thread.id)) else { continue };
        if let Some(processors) = &scheduling.processors {
            let mut set = CpuSet::new();
            processors
                .iter()
                .filter(|cpu| (**cpu as usize) < CpuSet::MAX_CPU)
                .for_each(|cpu| set.set(*cpu as usize));
            let _ = sched_setaffinity(Some(id), &set);
        }
        if let Some(priority) = scheduling.io_priority.filter(|priority| is_unprivileged(*priority)) {
            set_io_priority(id, priority);
        }
    }
    Ok(())
}

fn listed(set: &CpuSet) -> Vec<u32> {
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).filter_map(|cpu| u32::try_from(cpu).ok()).collect()
}

/// `IOPRIO_WHO_PROCESS`, which means one thread.
const THREAD: usize = 1;

/// Whether a sandbox may set this I/O priority itself: best-effort or idle.
fn is_unprivileged(priority: u32) -> bool {
    const CLASS_SHIFT: u32 = 13;
    const BEST_EFFORT: u32 = 2;
    const IDLE: u32 = 3;
    matches!(priority >> CLASS_SHIFT, BEST_EFFORT | IDLE)
}

fn io_priority(thread: Pid) -> Option<u32> {
    let id = usize::try_from(thread.as_raw_nonzero().get()).ok()?;
    // SAFETY: reads a number; takes no pointers.
    let priority = unsafe { sys::syscall(libc::SYS_ioprio_get, [THREAD, id, 0, 0, 0, 0]) };
    u32::try_from(priority.ok()?).ok()
}

fn set_io_priority(thread: Pid, priority: u32) {
    let Ok(id) = usize::try_from(thread.as_raw_nonzero().get()) else { return };
    // SAFETY: changes a number of a thread of the sandbox; takes no pointers.
    let _ = unsafe { sys::syscall(libc::SYS_ioprio_set, [THREAD, id, priority as usize, 0, 0, 0]) };
}
