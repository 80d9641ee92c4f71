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
    /// The processors that it may use, as places among those of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    processors: Option<Vec<usize>>,
    /// Class and level, as `ioprio_get` returns them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_priority: Option<u32>,
}

/// Returns what is unusual of the threads in the control group at `group`. Usual is what the process `init` has.
///
/// # Errors
/// The group cannot be read, or `init` has ended.
pub(crate) fn unusual_scheduling(group: &Path, init: i32) -> io::Result<Vec<Scheduling>> {
    let usual = sched_getaffinity(Pid::from_raw(init))?;
    let usual_list = listed(&usual);
    let of = |thread: Thread| {
        let id = Pid::from_raw(thread.id)?;
        let own = sched_getaffinity(Some(id)).ok().filter(|set| *set != usual);
        let processors = own.map(|set| places(&set, &usual_list));
        let io_priority = io_priority(id).filter(|priority| is_unprivileged(*priority));
        (processors.is_some() || io_priority.is_some()).then_some(())?;
        Some(Scheduling { thread: thread.inner_id()?, processors, io_priority })
    };
    Ok(threads_of(group)?.into_iter().filter_map(of).collect())
}

/// Gives the threads in the control group at `group` the scheduling that they were captured with. Processors that the sandbox does not
/// have any more are left out; a thread that has none left may use all.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn restore_scheduling(group: &Path, unusual: &[Scheduling]) -> io::Result<()> {
    if unusual.is_empty() {
        return Ok(());
    }
    let threads = threads_of(group)?.into_iter();
    let by_inner_id: HashMap<i32, Pid> =
        threads.filter_map(|thread| Some((thread.inner_id()?, Pid::from_raw(thread.id)?))).collect();
    let usual = by_inner_id.get(&1).map(|init| sched_getaffinity(Some(*init))).transpose()?;
    let usual = usual.map(|set| listed(&set)).unwrap_or_default();
    for scheduling in unusual {
        let Some(id) = by_inner_id.get(&scheduling.thread) else { continue };
        if let Some(places) = &scheduling.processors {
            let mut set = CpuSet::new();
            places.iter().filter_map(|place| usual.get(*place)).for_each(|cpu| set.set(*cpu));
            // Fails if none is left.
            let _ = sched_setaffinity(Some(*id), &set);
        }
        if let Some(priority) = scheduling.io_priority.filter(|priority| is_unprivileged(*priority)) {
            set_io_priority(*id, priority);
        }
    }
    Ok(())
}

/// Returns the processors of a set.
fn listed(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// Returns the places of a set's processors among the usual ones. A restored sandbox may run on other processors.
fn places(set: &CpuSet, usual: &[usize]) -> Vec<usize> {
    usual.iter().enumerate().filter(|(_, cpu)| set.is_set(**cpu)).map(|(place, _)| place).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_places_among_those_of_the_sandbox() {
        let set = |cpus: &[usize]| {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|cpu| set.set(*cpu));
            set
        };
        assert_eq!(listed(&set(&[3, 1])), [1, 3]);
        assert_eq!(places(&set(&[5, 9, 20]), &[4, 5, 9]), [1, 2]);
    }
}
