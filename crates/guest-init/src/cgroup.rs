//! The control group of envd and all user code: how many processes there may be, and whether they run.
//! Limits are on a group above the one that processes are in, so that user code finds them nowhere below its own root.
//! Version 2 only.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};

use crate::error::GuestError;

const ROOT: &str = "/cgroup";
const SANDBOX: &str = "/cgroup/sandbox";
const PROCESSES: &str = "/cgroup/sandbox/processes/cgroup.procs";
/// Most time for all processes to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the group.
pub(crate) fn make(pids: u32) -> Result<(), GuestError> {
    let make = || -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup", ROOT, "cgroup2", flags, None)?;
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+pids")?;
        fs::create_dir_all(format!("{SANDBOX}/processes"))
    };
    make().map_err(GuestError::kernel("make the control group"))?;
    limit(pids)
}

/// Puts the calling process into it.
pub(crate) fn join() -> io::Result<()> {
    fs::write(PROCESSES, "0")
}

/// Limits the number of processes and threads.
pub(crate) fn limit(pids: u32) -> Result<(), GuestError> {
    fs::write(format!("{SANDBOX}/pids.max"), pids.to_string()).map_err(GuestError::kernel("limit processes"))
}

/// Stops all processes and waits until they stand. They go on where that fails.
pub(crate) fn freeze() -> Result<(), GuestError> {
    let frozen = set_frozen(true).and_then(|()| wait_until_frozen());
    frozen.map_err(|error| {
        let _ = set_frozen(false);
        GuestError::kernel("stop user code")(error)
    })
}

/// Lets them go on.
pub(crate) fn thaw() -> Result<(), GuestError> {
    set_frozen(false).map_err(GuestError::kernel("let user code go on"))
}

fn set_frozen(frozen: bool) -> io::Result<()> {
    fs::write(format!("{SANDBOX}/cgroup.freeze"), if frozen { "1" } else { "0" })
}

fn wait_until_frozen() -> io::Result<()> {
    let mut events = File::open(format!("{SANDBOX}/cgroup.events"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        let mut text = String::new();
        events.seek(SeekFrom::Start(0))?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&limit))?;
    }
}
