//! The threads of a sandbox's frozen processes, as `/proc` shows them, and which of them CRIU cannot take over.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use engine::EngineError;

use crate::refusal::refusal;

/// A thread of a frozen process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) process: i32,
    pub(crate) id: i32,
}

/// Returns the threads of all processes in the control group at `group`.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn threads_of(group: &Path) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    let processes = fs::read_to_string(group.join("cgroup.procs"))?;
    for process in processes.lines().filter_map(|line| line.parse().ok()) {
        // Killed meanwhile, it has none.
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        threads.extend(ids.map(|id| Thread { process, id }));
    }
    Ok(threads)
}

impl Thread {
    /// Reads one of its files in `/proc`; empty when it has ended.
    pub(crate) fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/task/{}/{file}", self.process, self.id)).unwrap_or_default()
    }

    /// Returns the number and the first argument of the call that it is in.
    pub(crate) fn call(self) -> Option<(i64, u64)> {
        const MAX_READS: usize = 100;
        const PAUSE: Duration = Duration::from_micros(500);
        let mut text = self.read("syscall");
        // A thread in `vfork` counts as frozen, but runs for a moment when it is thawed, and may have to wait for a processor.
        for _ in 1..MAX_READS {
            if !text.starts_with("running") {
                break;
            }
            thread::park_timeout(PAUSE);
            text = self.read("syscall");
        }
        let mut fields = text.split_whitespace();
        let number = fields.next()?.parse().ok()?;
        let argument =
            fields.next().and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok());
        Some((number, argument.unwrap_or(0)))
    }

    /// Returns its id in the sandbox.
    pub(crate) fn inner_id(self) -> Option<i32> {
        let status = self.read("status");
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        ids.split_whitespace().next_back()?.parse().ok()
    }

    /// Whether it waits until a child has executed a program (`vfork`). It is counted as frozen, but does not stop for a tracer.
    fn is_in_vfork(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        const VFORK: i64 = libc::SYS_vfork;
        #[cfg(not(target_arch = "x86_64"))]
        const VFORK: i64 = -1;
        let flag = u64::from(libc::CLONE_VFORK.cast_unsigned());
        self.call()
            .is_some_and(|(number, flags)| number == VFORK || number == libc::SYS_clone && flags & flag != 0)
    }
}

/// Returns a thread of the processes in the control group at `group` that is in `vfork`.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn in_vfork(group: &Path) -> io::Result<Option<Thread>> {
    Ok(threads_of(group)?.into_iter().find(|thread| thread.is_in_vfork()))
}

/// Refuses processes in the control group at `group` that another one traces: CRIU would wait for them in vain.
///
/// # Errors
/// [`EngineError::Uncapturable`] with the traced program; the group cannot be read.
pub(crate) fn refuse_traced(group: &Path) -> Result<(), EngineError> {
    let threads = threads_of(group).map_err(EngineError::kernel("list the sandbox's threads"))?;
    let is_traced = |thread: &&Thread| {
        let status = thread.read("status");
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|pid| pid.trim() != "0")
    };
    let mut leaders = threads.iter().filter(|thread| thread.id == thread.process);
    leaders.find(is_traced).map_or(Ok(()), |thread| {
        Err(refusal(Some(thread.process), "is being traced, by a debugger or strace"))
    })
}
