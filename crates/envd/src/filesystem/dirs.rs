//! Creates the directories above a file, owned by the user.
//! It walks by descriptors, so that no file that replaces a new directory meanwhile changes its owner.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use thiserror::Error;

use crate::users::User;

/// Why a directory could not be created.
#[derive(Debug, Error)]
pub enum DirsError {
    /// A component of the path is not a directory.
    #[error("path is a file: {0}")]
    NotDirectory(PathBuf),
    /// Another error.
    #[error("{0}: {1}")]
    Io(PathBuf, Errno),
}

impl DirsError {
    /// Whether the disk or quota is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io(_, Errno::NOSPC | Errno::DQUOT))
    }
}

/// Creates `path` and its missing parents. Returns whether the last component is new.
pub fn ensure(path: &Path, user: &User) -> Result<bool, DirsError> {
    let mut at = open(CWD, Path::new("/"), false).map_err(|e| DirsError::Io("/".into(), e))?;
    let mut walked = PathBuf::from("/");
    let mut new = false;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        walked.push(name);
        (at, new) = enter(&at, Path::new(name), user).map_err(|error| match error {
            Errno::NOTDIR => DirsError::NotDirectory(walked.clone()),
            error => DirsError::Io(walked.clone(), error),
        })?;
    }
    Ok(new)
}

fn enter(at: &OwnedFd, name: &Path, user: &User) -> rustix::io::Result<(OwnedFd, bool)> {
    match open(at, name, false) {
        Err(Errno::NOENT) => {}
        other => return other.map(|dir| (dir, false)),
    }
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        // Another process has made it, or it is a dangling link.
        Err(Errno::EXIST) => return open(at, name, false).map(|dir| (dir, false)),
        made => made?,
    }
    // Do not follow a link that has replaced the new directory.
    let dir = open(at, name, true)?;
    rustix::fs::fchown(&dir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    Ok((dir, true))
}

fn open(at: impl std::os::fd::AsFd, name: &Path, no_follow: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if no_follow {
        flags |= OFlags::NOFOLLOW;
    }
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creates_missing_directories_and_fails_at_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let me = rustix::process::getuid().as_raw();
        let user =
            User { name: "me".into(), uid: me, gid: rustix::process::getgid().as_raw(), home: "/".into() };
        let path = dir.path().join("a/b");
        assert!(ensure(&path, &user).expect("made"));
        assert!(!ensure(&path, &user).expect("there"));
        std::fs::write(path.join("f"), "").expect("written");
        assert!(
            matches!(ensure(&path.join("f/x"), &user), Err(DirsError::NotDirectory(at)) if at == path.join("f"))
        );
        std::os::unix::fs::symlink(dir.path().join("gone"), path.join("broken")).expect("linked");
        assert!(ensure(&path.join("broken"), &user).is_err());
    }

    /// A user who replaces a new directory by a link at the right moment must not become the owner of its target.
    #[test]
    fn targets_of_swapped_in_links_keep_their_owner() {
        use std::os::unix::fs::MetadataExt;
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

        let dir = tempfile::tempdir().expect("a directory");
        let [victim, place, link] = ["victim", "place", "link"].map(|name| dir.path().join(name));
        std::fs::create_dir(&victim).expect("made");
        let before = std::fs::metadata(&victim).expect("there");
        let user = User { name: "else".into(), uid: 54_321, gid: 54_321, home: "/".into() };
        let (is_over, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = std::os::unix::fs::symlink(&victim, &link);
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    // Succeeds as soon as there is a directory.
                    if rustix::fs::renameat_with(CWD, &link, CWD, &place, exchange).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                        let _ = std::fs::remove_dir(&link);
                        let _ = std::fs::remove_file(&place);
                    }
                }
            });
            for _ in 0..20_000 {
                let _ = ensure(&place, &user);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(swaps.into_inner() > 0, "some swaps happened in time");
        let after = std::fs::metadata(&victim).expect("there");
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    }
}
