//! Records of running kernels, so that the next interpreter can kill those that a killed interpreter has left over.
//! A record is a symbolic link from the process id to the program, in a directory that its interpreter locks while it runs.
//! The next interpreter that gets the lock kills the recorded processes that still run.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process_group};

/// The records of this interpreter's kernels.
#[derive(Debug)]
pub(crate) struct KernelRecords {
    dir: PathBuf,
    _lock: File,
}

impl KernelRecords {
    /// Kills the kernels that an earlier interpreter has left over, and begins new records. Returns `None` if another
    /// interpreter uses the directory, or it cannot be made: the interpreter works without records.
    pub(crate) fn sweep(dir: &Path) -> Option<Self> {
        let lock = fs::create_dir_all(dir).and_then(|()| File::open(dir));
        let lock = lock
            .inspect_err(|error| tracing::warn!(dir = %dir.display(), %error, "failed to open the directory of kernel records"))
            .ok()?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            let recorded = fs::read_link(entry.path()).ok();
            if let Some(pid) = pid
                && recorded.is_some()
                && program(pid) == recorded
            {
                tracing::info!(%pid, "killing a kernel that an earlier interpreter left over");
                // Its children are killed too, as with every kernel.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = fs::remove_file(entry.path());
        }
        Some(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Records a process that leads its process group.
    pub(crate) fn add(&self, pid: Pid) {
        if let Some(program) = program(pid) {
            // Without the record a left-over kernel would only use memory.
            let _ = symlink(program, self.path(pid));
        }
    }

    pub(crate) fn remove(&self, pid: Pid) {
        let _ = fs::remove_file(self.path(pid));
    }

    fn path(&self, pid: Pid) -> PathBuf {
        self.dir.join(pid.to_string())
    }
}

/// Returns the program of a process. The start time is not compared: it changes when a memory snapshot is restored.
fn program(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_recorded_processes_with_the_same_program_are_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sleepers: Vec<_> = (0..3)
            .map(|_| Command::new("sleep").arg("1000").process_group(0).spawn().expect("sleep is everywhere"))
            .collect();
        let pids: Vec<_> = sleepers.iter().map(Pid::from_child).collect();
        let records = KernelRecords::sweep(dir.path()).expect("records");
        assert!(KernelRecords::sweep(dir.path()).is_none(), "its owner lives");
        pids.iter().for_each(|pid| records.add(*pid));
        records.remove(pids[1]);
        records.remove(pids[2]);
        symlink("/bin/other", records.path(pids[2])).expect("a record of an earlier process with this id");
        drop(records);
        assert!(KernelRecords::sweep(dir.path()).is_some());
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0);
        sleepers[0].wait().expect("it has ended");
        for sleeper in &mut sleepers[1..] {
            assert!(sleeper.try_wait().expect("a child").is_none(), "it was left alone");
            sleeper.kill().and_then(|()| sleeper.wait()).expect("ours");
        }
    }
}
