//! Locks on files of volumes. A restore takes those that the captured programs held, and would wait for ever for one that somebody else
//! has now. So they are remembered with the snapshot, and tried before.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use engine::{EngineError, VolumeMount};
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::volumes::MountedVolume;

/// How many locks are remembered: a guest decides how many there are.
const MAX_LOCKS: usize = 1_000;

/// A lock that a program holds on a file of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldLock {
    /// The path that was asked for when the volume was mounted.
    volume: String,
    /// The file's path within what is mounted.
    file: String,
    kind: LockKind,
    /// Whether nobody else may have a lock.
    exclusive: bool,
    /// First byte, and the last one; `None` for the end of the file. Of locks by `flock`, the whole file.
    first: u64,
    last: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LockKind {
    /// `flock`.
    File,
    /// `fcntl`, of a process or of an open file.
    Range,
}

/// Returns the locks that the processes in the control group at `group` hold on files of volumes.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn held_locks(group: &Path, volumes: &[MountedVolume]) -> io::Result<Vec<HeldLock>> {
    let mut locks = Vec::new();
    if volumes.is_empty() {
        return Ok(locks);
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        let process = Path::new("/proc").join(pid);
        // A process that was killed meanwhile holds nothing.
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some((volume, file)) = target.to_str().and_then(|target| in_volume(target, volumes)) else {
                continue;
            };
            let info =
                fs::read_to_string(process.join("fdinfo").join(descriptor.file_name())).unwrap_or_default();
            let found = info.lines().filter_map(|line| parse(line, volume, file));
            locks.extend(found.take(MAX_LOCKS - locks.len()));
        }
    }
    Ok(locks)
}

/// Returns the volume that a path in the sandbox is in, and the rest of the path.
fn in_volume<'a>(path: &'a str, volumes: &'a [MountedVolume]) -> Option<(&'a str, &'a str)> {
    volumes.iter().find_map(|volume| {
        let file = path.strip_prefix(volume.mount_point.as_str())?.strip_prefix('/')?;
        Some((volume.path.as_str(), file))
    })
}

/// Reads a line such as `lock: 1: POSIX  ADVISORY  WRITE 123 00:2a:257 128 255`.
fn parse(line: &str, volume: &str, file: &str) -> Option<HeldLock> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    let kind = match words.next()? {
        "FLOCK" => LockKind::File,
        "POSIX" | "OFDLCK" => LockKind::Range,
        _ => return None,
    };
    let exclusive = words.nth(1)? == "WRITE";
    let first = words.nth(2)?.parse().ok()?;
    let last = words.next()?.parse().ok();
    Some(HeldLock { volume: volume.to_owned(), file: file.to_owned(), kind, exclusive, first, last })
}

/// Checks that a restore gets the locks that its programs held.
///
/// # Errors
/// [`EngineError::Locked`] with the file that somebody else has locked.
pub(crate) fn check_locks(locks: &[HeldLock], volumes: &[VolumeMount]) -> Result<(), EngineError> {
    for lock in locks {
        let Some(volume) = volumes.iter().find(|volume| volume.path == lock.volume) else { continue };
        // A file that is gone fails the restore by itself.
        let Ok(file) = open_within(volume, lock) else { continue };
        if is_taken(&file, lock).map_err(EngineError::kernel("try a lock in a volume"))? {
            return Err(EngineError::Locked(format!("{}/{}", lock.volume, lock.file)));
        }
    }
    Ok(())
}

fn open_within(volume: &VolumeMount, lock: &HeldLock) -> Result<OwnedFd, Errno> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // A pipe in the file's place must not be waited for.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(volume.source.as_fd(), lock.file.as_str(), flags, Mode::empty(), within)
}

/// Whether somebody has a lock that excludes this one.
fn is_taken(file: &OwnedFd, lock: &HeldLock) -> io::Result<bool> {
    if lock.kind == LockKind::Range {
        return sys::is_range_locked(file.as_fd(), lock.exclusive, lock.first, lock.last);
    }
    let operation = match lock.exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    // Released when the file is closed, which is at once.
    match flock(file, operation) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_from_what_the_kernel_says() {
        let read = |line| parse(line, "/data", "db");
        let lock = |kind, exclusive, first, last| {
            Some(HeldLock { volume: "/data".into(), file: "db".into(), kind, exclusive, first, last })
        };
        assert_eq!(
            read("lock:\t1: FLOCK  ADVISORY  WRITE 12 00:2a:260 0 EOF"),
            lock(LockKind::File, true, 0, None)
        );
        assert_eq!(
            read("lock:\t2: POSIX  ADVISORY  READ 12 00:2a:260 128 255"),
            lock(LockKind::Range, false, 128, Some(255))
        );
        assert_eq!(read("lock:\t2: LEASE  ACTIVE    READ 12 00:2a:260 0 EOF"), None);
        assert_eq!(read("pos:\t0"), None);
        let mounted =
            |path: &str| MountedVolume { path: path.into(), mount_point: path.into(), read_only: false };
        let volumes = [mounted("/data"), mounted("/srv/x")];
        assert_eq!(in_volume("/srv/x/a/b", &volumes), Some(("/srv/x", "a/b")));
        assert_eq!(in_volume("/database/a", &volumes), None);
    }

    #[test]
    fn a_range_that_somebody_else_has_locked_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let file = fs::File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(dir.path().join("f"));
            OwnedFd::from(file.unwrap())
        };
        let (holder, other) = (open(), open());
        let lock = |exclusive, first, last| HeldLock {
            volume: String::new(),
            file: "f".into(),
            kind: LockKind::Range,
            exclusive,
            first,
            last,
        };
        sys::lock_range(holder.as_fd(), true, 10, Some(19)).unwrap();
        assert!(is_taken(&other, &lock(true, 19, None)).unwrap());
        assert!(is_taken(&other, &lock(false, 0, Some(10))).unwrap());
        assert!(!is_taken(&other, &lock(true, 0, Some(9))).unwrap());
        assert!(!is_taken(&other, &lock(true, 20, None)).unwrap());
        let whole = HeldLock { kind: LockKind::File, ..lock(true, 0, None) };
        assert!(!is_taken(&open(), &whole).unwrap());
        flock(&holder, FlockOperation::LockShared).unwrap();
        assert!(is_taken(&open(), &whole).unwrap());
        assert!(!is_taken(&open(), &HeldLock { exclusive: false, ..whole }).unwrap());
    }
}
