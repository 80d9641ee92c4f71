//! Finds the processes that hold an `flock` on a file, waits for them or kills them. The kernel lists locks for every descriptor, so no
//! record of the processes is necessary.
//! A lock outlives the server that took it if a child process has inherited the descriptor, for example CRIU during a memory dump.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns every other process that holds an `flock` on the file at `path`. Blocks: it looks at every descriptor on the host.
pub(crate) fn lock_holders(path: &Path) -> io::Result<Vec<OwnedFd>> {
    let file = Locked { path: fs::canonicalize(path)?, identity: identity(path)? };
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

/// A file that may be locked.
struct Locked {
    path: PathBuf,
    identity: Identity,
}

/// Device (major, minor) and inode.
type Identity = (u32, u32, u64);

/// Asks the kernel only, never a file system that somebody else serves.
fn identity(path: &Path) -> io::Result<Identity> {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

fn holds_lock(pid: i32, file: &Locked) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let of_file = |link: &Path| {
        fs::read_link(link).is_ok_and(|target| target == file.path)
            // A process in a sandbox may have a file of its own at the same path.
            && identity(link).is_ok_and(|identity| identity == file.identity)
    };
    descriptors.flatten().filter(|one| of_file(&one.path())).any(|one| {
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(one.file_name());
        fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
    })
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Runs a shell command that prints a line when it is ready and ends with its input.
    fn started(script: &str, dir: &Path) -> Child {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).current_dir(dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        child
    }

    #[test]
    fn a_file_of_somebody_else_with_the_same_path_is_another_file() {
        const LOCK: &str = "exec 9> file; flock 9; echo locked; exec cat";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let mut impostor = started(&format!("mount -t tmpfs none . && cd \"$PWD\" && {LOCK}"), dir.path());
        assert!(lock_holders(&path).unwrap().is_empty());
        let mut holder = started(LOCK, dir.path());
        assert_eq!(lock_holders(&path).unwrap().len(), 1);
        for child in [&mut impostor, &mut holder] {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
    }
}
