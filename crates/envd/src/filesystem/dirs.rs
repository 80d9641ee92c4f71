//! Creates the directories above a file, owned by the user.
//! It walks by descriptors, so that no file that replaces a new directory meanwhile changes its owner.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use thiserror::Error;

use crate::filesystem::ops::error_text;
use crate::filesystem::root_only;
use crate::identity::{Identity, is_denial};

/// Why a directory could not be created.
#[derive(Debug, Error)]
pub enum DirsError {
    /// A component of the path is not a directory.
    #[error("path is a file: {0}")]
    NotDirectory(PathBuf),
    /// Another error.
    #[error("{0}: {text}", text = error_text(&(*.1).into()))]
    Io(PathBuf, Errno),
}

impl DirsError {
    /// Whether the user lacks a right.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io(_, error) if is_denial(*error))
    }

    /// Whether the disk or quota is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io(_, Errno::NOSPC | Errno::DQUOT))
    }
}

/// Creates `path` and its missing parents with the rights of the user, or where [`root_only`] allows it. Returns whether
/// the last component is new. Blocking.
pub fn ensure(path: &Path, identity: &Identity) -> Result<bool, DirsError> {
    let walk = || identity.run(|| create(path, identity, None)).map_err(|error| setup_error(path, &error))?;
    match walk() {
        Err(DirsError::Io(at, error)) if is_denial(error) => {
            if !root_only::make_dir(&at, identity) {
                return Err(DirsError::Io(at, error));
            }
            // What is missing below belongs into a directory of the user's now.
            walk().map(|new| new || at == path)
        }
        result => result,
    }
}

fn setup_error(path: &Path, error: &std::io::Error) -> DirsError {
    DirsError::Io(path.to_owned(), Errno::from_io_error(error).unwrap_or(Errno::PERM))
}

/// Creates `path` and its missing parents with the rights of this thread. Links below `no_links_below` are not followed.
/// Returns whether the last component is new.
pub fn create(path: &Path, identity: &Identity, no_links_below: Option<&Path>) -> Result<bool, DirsError> {
    let mut at = open(CWD, Path::new("/"), SEARCH).map_err(|e| DirsError::Io("/".into(), e))?;
    let mut walked = PathBuf::from("/");
    let mut new = false;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let follow = no_links_below.is_none_or(|base| !walked.starts_with(base));
        walked.push(name);
        (at, new) = enter(&at, Path::new(name), identity, follow).map_err(|error| match error {
            Errno::NOTDIR => DirsError::NotDirectory(walked.clone()),
            error => DirsError::Io(walked.clone(), error),
        })?;
    }
    Ok(new)
}

/// To walk through a directory it need not be readable.
const SEARCH: OFlags = OFlags::PATH;

fn enter(
    at: &OwnedFd,
    name: &Path,
    identity: &Identity,
    follow: bool,
) -> rustix::io::Result<(OwnedFd, bool)> {
    let flags = if follow { SEARCH } else { SEARCH | OFlags::NOFOLLOW };
    match open(at, name, flags) {
        Err(Errno::NOENT) => {}
        other => return other.map(|dir| (dir, false)),
    }
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        // Another process has made it, or it is a dangling link.
        Err(Errno::EXIST) => return open(at, name, flags).map(|dir| (dir, false)),
        made => made?,
    }
    // Do not follow a link that has replaced the new directory.
    let dir = open(at, name, OFlags::RDONLY | OFlags::NOFOLLOW)?;
    give_to(&dir, identity)?;
    Ok((dir, true))
}

/// Makes the user the owner of a new directory.
pub fn give_to(dir: &OwnedFd, identity: &Identity) -> rustix::io::Result<()> {
    rustix::fs::fchown(dir, Some(Uid::from_raw(identity.uid)), Some(Gid::from_raw(identity.gid)))
}

/// Opens a directory.
pub fn open(at: impl std::os::fd::AsFd, name: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::User;

    fn identity(name: &str, uid: u32, gid: u32) -> Identity {
        Identity::of(&User { name: name.into(), uid, gid, home: "/".into() })
    }

    #[test]
    fn creates_missing_directories_and_fails_at_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let me = rustix::process::getuid().as_raw();
        let user = identity("me", me, rustix::process::getgid().as_raw());
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
        let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open_to_all).expect("changed");
        let [victim, place, link] = ["victim", "place", "link"].map(|name| dir.path().join(name));
        std::fs::create_dir(&victim).expect("made");
        let before = std::fs::metadata(&victim).expect("there");
        let user = identity("else", 54_321, 54_321);
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
