//! Tells of a process that died by SIGKILL whether the kernel killed it because the sandbox's memory limit was reached. The kernel only counts
//! such kills for the whole sandbox. The count that was known when the process was started is compared with the one at its
//! end, so a kill is attributed to a process that was running.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};

const CGROUP: &str = "/sys/fs/cgroup";
/// Exit code of a shell whose last command died by SIGKILL.
const SHELL_KILLED: i32 = 128 + 9;

/// The number of kills that is known.
#[derive(Debug, Default)]
pub struct MemoryKills(AtomicU64);

impl MemoryKills {
    /// Returns the number of kills that is known, without asking the kernel.
    pub fn known(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns whether the kernel has killed a process since `known` was the number. Asks it only about statuses of failure.
    pub fn explain(&self, status: ExitStatus, known: u64) -> bool {
        self.explain_by(Path::new(CGROUP), status, known)
    }

    fn explain_by(&self, cgroup: &Path, status: ExitStatus, known: u64) -> bool {
        if status.success() {
            return false;
        }
        let Some(now) = kills(cgroup) else { return false };
        self.0.store(now, Ordering::Relaxed);
        // A resumed sandbox has a new control group, which counts from 0.
        let before = if now < known { 0 } else { known };
        let is_killed = status.signal() == Some(libc::SIGKILL) || status.code() == Some(SHELL_KILLED);
        is_killed && now > before
    }
}

/// Reads the number of kills; `None` where it is not visible.
fn kills(cgroup: &Path) -> Option<u64> {
    let text = fs::read_to_string(cgroup.join("memory.events")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Returns the reason as it is appended to an error; `limit` is the sandbox's memory, bytes.
pub fn reason(limit: Option<u64>) -> String {
    let limit = limit.map(|bytes| format!(" of {} MiB", bytes >> 20)).unwrap_or_default();
    format!("out of memory: the sandbox's memory limit{limit} was reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_since_the_start_explains_a_death() {
        let dir = tempfile::tempdir().unwrap();
        let count = |kills: u64| {
            fs::write(dir.path().join("memory.events"), format!("low 0\nmax 9\noom 1\noom_kill {kills}\n"))
                .unwrap();
        };
        let (killed, shell, failed) =
            (ExitStatus::from_raw(9), ExitStatus::from_raw(137 << 8), ExitStatus::from_raw(1 << 8));
        let all = MemoryKills::default();
        assert!(!all.explain_by(dir.path(), killed, 0), "no control group is visible");
        count(0);
        assert!(!all.explain_by(dir.path(), killed, all.known()), "another one has killed it");
        count(1);
        assert!(all.explain_by(dir.path(), killed, 0));
        assert!(all.explain_by(dir.path(), shell, 0), "two processes may have been running");
        assert!(!all.explain_by(dir.path(), killed, all.known()), "started after the kill");
        count(2);
        assert!(!all.explain_by(dir.path(), failed, 1), "it ended by itself");
        assert_eq!(all.known(), 2);
        assert_eq!(
            reason(Some(512 << 20)),
            "out of memory: the sandbox's memory limit of 512 MiB was reached"
        );
    }

    #[test]
    fn counts_begin_anew_after_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let all = MemoryKills(AtomicU64::new(5));
        fs::write(dir.path().join("memory.events"), "oom_kill 0\n").unwrap();
        assert!(!all.explain_by(dir.path(), ExitStatus::from_raw(9), 5));
        fs::write(dir.path().join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(all.explain_by(dir.path(), ExitStatus::from_raw(9), all.known()));
    }
}
