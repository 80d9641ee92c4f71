//! [`ProcessId`]: identifies a process across restarts of the server and of the host. Pids are reused, so the start time and the
//! boot must match too. Also [`exit_reason`]: how a process ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use engine::ExitReason;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use serde::{Deserialize, Serialize};

/// Identifies one process of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid on the host.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub start_time: u64,
    /// The boot it was started in.
    pub boot_id: String,
}

impl ProcessId {
    /// Identifies the running process with this pid.
    ///
    /// # Errors
    /// It has ended.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// Whether the process is still the same and alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|now| now == self.boot_id)
            && start_time(self.pid).is_ok_and(|t| t == self.start_time)
    }

    /// Opens a pidfd of the process.
    ///
    /// # Errors
    /// `NotFound` when it has ended, also if another process has its pid now.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| io::ErrorKind::NotFound)?;
        // After the pidfd: from here on the pid cannot come to mean another process.
        if self.is_alive() { Ok(pidfd) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Returns how a process ended. Only its parent can find out: the result is [`ExitReason::Unknown`] for processes that an earlier
/// server started.
#[must_use]
pub fn exit_reason(pidfd: &OwnedFd) -> ExitReason {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitReason::Exited(code),
            (None, Some(signal)) => ExitReason::Signalled(signal),
            (None, None) => ExitReason::Unknown,
        },
        _ => ExitReason::Unknown,
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Reads the start time: field 22 of `/proc/<pid>/stat`. The command name before it may contain spaces and brackets. `NotFound` for
/// a zombie.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace();
    let state = fields.next();
    match fields.nth(18).and_then(|field| field.parse().ok()) {
        Some(time) if state != Some("Z") => Ok(time),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_start_time_is_another_process() {
        let mut own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive() && own.open().is_ok());
        own.start_time += 1;
        assert!(!own.is_alive() && own.open().is_err());
    }
}
