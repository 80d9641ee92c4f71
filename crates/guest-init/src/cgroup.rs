//! The control group of envd and all user code: limits the number of processes, and freezes them.
//!
//! Processor and memory are only counted: their limits are the VM's. User code sees the group at
//! `/sys/fs/cgroup`, may divide it, and envd reads there whether the kernel has killed a process for want of memory.
//!
//! Limits are set on the parent of the group that contains the processes, so that user code cannot
//! reach them from its own cgroup root. Its files stay open, so that the first steps of a clone are
//! as few as possible.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};

use crate::error::InitError;

const ROOT: &str = "/cgroup";
const SANDBOX: &str = "/cgroup/sandbox";
const PROCESSES: &str = "/cgroup/sandbox/processes/cgroup.procs";
/// Maximum time until all processes are frozen.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);

/// The open files of the control group.
#[derive(Debug)]
pub(crate) struct SandboxCgroup {
    freeze: File,
    events: File,
    limit: File,
    /// The present limit.
    pids: Cell<u32>,
}

/// Creates the group with this limit of processes and threads.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn make(pids: u32) -> Result<SandboxCgroup, InitError> {
    let make = || -> io::Result<SandboxCgroup> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup", ROOT, "cgroup2", flags, None)?;
        fs::create_dir_all(format!("{SANDBOX}/processes"))?;
        for parent in [ROOT, SANDBOX] {
            fs::write(format!("{parent}/cgroup.subtree_control"), "+cpu +memory +pids")?;
        }
        let open = |name: &str| File::options().write(true).open(format!("{SANDBOX}/{name}"));
        let events = File::open(format!("{SANDBOX}/cgroup.events"))?;
        let cgroup = SandboxCgroup {
            freeze: open("cgroup.freeze")?,
            events,
            limit: open("pids.max")?,
            pids: Cell::new(pids),
        };
        cgroup.limit.write_all_at(pids.to_string().as_bytes(), 0)?;
        Ok(cgroup)
    };
    make().map_err(InitError::kernel("make the control cgroup"))
}

/// Moves the calling process into the group.
pub(crate) fn join() -> io::Result<()> {
    fs::write(PROCESSES, "0")
}

impl SandboxCgroup {
    /// Changes the limit of processes and threads.
    pub(crate) fn limit(&self, pids: u32) -> Result<(), InitError> {
        if self.pids.get() == pids {
            return Ok(());
        }
        let limited = self.limit.write_all_at(pids.to_string().as_bytes(), 0);
        limited.map_err(InitError::kernel("limit processes"))?;
        self.pids.set(pids);
        Ok(())
    }

    /// Freezes all processes and returns once all are frozen.
    ///
    /// # Errors
    /// Not all of them are frozen in time; then they are thawed.
    pub(crate) fn freeze(&self) -> Result<(), InitError> {
        let frozen = self.set_frozen(true).and_then(|()| self.wait_until_frozen());
        frozen.map_err(|error| {
            let _ = self.set_frozen(false);
            InitError::kernel("freeze user code")(error)
        })
    }

    /// Thaws all processes.
    pub(crate) fn thaw(&self) -> Result<(), InitError> {
        self.set_frozen(false).map_err(InitError::kernel("thaw user code"))
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        self.freeze.write_all_at(if frozen { b"1" } else { b"0" }, 0)
    }

    fn wait_until_frozen(&self) -> io::Result<()> {
        let end = Instant::now() + FREEZE_TIMEOUT;
        let mut text = [0; 256];
        loop {
            let length = self.events.read_at(&mut text, 0)?;
            if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"frozen 1") {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let limit =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            poll(&mut [PollFd::new(&self.events, PollFlags::PRI)], Some(&limit))?;
        }
    }
}
