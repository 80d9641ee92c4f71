//! What a killed interpreter leaves behind: kernels that nobody speaks to any more, each of them with its memory.
//! Processes are written down by number and program, a link each, in a directory that is locked while its interpreter lives.
//! The next one that gets the lock ends those of them that still run.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process_group};

/// The interpreter's own notes.
#[derive(Debug)]
pub(crate) struct Remains {
    dir: PathBuf,
    _lock: File,
}

impl Remains {
    /// Ends what an interpreter before us has left, and takes notes from here on. None are taken where another interpreter uses the
    /// directory, or where it cannot be made: everything else works without.
    pub(crate) fn sweep(dir: &Path) -> Option<Self> {
        let lock = fs::create_dir_all(dir).and_then(|()| File::open(dir));
        let lock = lock
            .inspect_err(|error| tracing::warn!(dir = %dir.display(), %error, "kernels are not noted"))
            .ok()?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            let noted = fs::read_link(entry.path()).ok();
            if let Some(pid) = pid
                && noted.is_some()
                && program(pid) == noted
            {
                tracing::info!(%pid, "ending a kernel of an interpreter that is gone");
                // What it has started goes with it, as with every kernel that is ended.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = fs::remove_file(entry.path());
        }
        Some(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Notes a process that leads its group.
    pub(crate) fn note(&self, pid: Pid) {
        if let Some(program) = program(pid) {
            // A note that is missing costs memory, at worst and later.
            let _ = symlink(program, self.path(pid));
        }
    }

    pub(crate) fn forget(&self, pid: Pid) {
        let _ = fs::remove_file(self.path(pid));
    }

    fn path(&self, pid: Pid) -> PathBuf {
        self.dir.join(pid.to_string())
    }
}

/// What it runs. Not since when: a process that a memory image brought back has begun anew, for its kernel.
fn program(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_was_noted_and_is_still_the_same_is_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sleepers: Vec<_> = (0..3)
            .map(|_| Command::new("sleep").arg("1000").process_group(0).spawn().expect("sleep is everywhere"))
            .collect();
        let pids: Vec<_> = sleepers.iter().map(Pid::from_child).collect();
        let notes = Remains::sweep(dir.path()).expect("notes");
        assert!(Remains::sweep(dir.path()).is_none(), "its owner lives");
        pids.iter().for_each(|pid| notes.note(*pid));
        notes.forget(pids[1]);
        notes.forget(pids[2]);
        symlink("/bin/other", notes.path(pids[2])).expect("a note of a process that had this number before");
        drop(notes);
        assert!(Remains::sweep(dir.path()).is_some());
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0);
        sleepers[0].wait().expect("it has ended");
        for sleeper in &mut sleepers[1..] {
            assert!(sleeper.try_wait().expect("a child").is_none(), "it was left alone");
            sleeper.kill().and_then(|()| sleeper.wait()).expect("ours");
        }
    }
}
