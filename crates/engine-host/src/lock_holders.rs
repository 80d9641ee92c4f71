//! Finds the processes that hold an `flock` on a file, waits for them or kills them. The kernel lists locks for every descriptor, so no
//! record of the processes is necessary.
//! A lock outlives the server that took it if a child process has inherited the descriptor, for example CRIU during a memory dump.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns every other process that holds an `flock` on the file at `path`. Blocks: it looks at every descriptor on the host.
pub(crate) fn lock_holders(path: &Path) -> io::Result<Vec<OwnedFd>> {
    let file = fs::canonicalize(path)?;
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some(raw) = Pid::from_raw(pid).filter(|_| pid != own) else { continue };
        // Opened before the descriptors are looked at: from here on the pid cannot come to mean another process. A process that has
        // ended holds nothing.
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { continue };
        if holds_lock(pid, &file) {
            found.push(pidfd);
        }
    }
    Ok(found)
}

fn holds_lock(pid: i32, file: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().filter(|one| fs::read_link(one.path()).is_ok_and(|target| target == file)).any(
        |one| {
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(one.file_name());
            fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
        },
    )
}

/// Waits for all `processes` to end; returns whether they did within `limit`.
pub(crate) async fn end_within(processes: &[OwnedFd], limit: Duration) -> io::Result<bool> {
    let all = async {
        for process in processes {
            let watched = process.try_clone()?;
            // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
            let watched = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?;
            let _ = watched.readable().await?;
        }
        Ok(())
    };
    tokio::time::timeout(limit, all).await.map_or(Ok(false), |ended| ended.map(|()| true))
}

/// Kills `processes`. A process that has ended already is no error.
pub(crate) fn kill(processes: &[OwnedFd]) -> io::Result<()> {
    for process in processes {
        match pidfd_send_signal(process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
