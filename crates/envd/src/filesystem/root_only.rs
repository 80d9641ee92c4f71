//! What users may do through envd where only root may write, like `/` and `/opt`: as in a sticky directory, they may
//! create entries, and remove and rename their own. Clients expect that `/app/main.py` can be written as `user`.
//!
//! envd acts as root here, so user code must have no influence on what a path means: every directory on it belongs to
//! root, is writable by root alone, and open to all; links are not followed; existing files are not touched.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Uid};

use crate::filesystem::dirs;
use crate::identity::Identity;

/// The directory of a path, all of which only root may change, and the last component of the path.
struct Place<'a> {
    dir: OwnedFd,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        let name = path.file_name()?;
        let mut dir = dirs::open(CWD, Path::new("/"), OFlags::PATH).ok()?;
        let root = public_dir(&dir)?;
        for component in path.parent()?.components() {
            let Component::Normal(name) = component else { continue };
            dir = dirs::open(&dir, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW).ok()?;
            // Not in /proc, /sys and other mounts, where an entry may mean more than a file.
            public_dir(&dir).filter(|stat| stat.st_dev == root.st_dev)?;
        }
        Some(Self { dir, name })
    }

    /// The entry, if there is one.
    fn entry(&self) -> Option<Stat> {
        rustix::fs::statat(&self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }
}

/// Returns the attributes of a directory if only root may write it, and everybody may enter it.
fn public_dir(dir: &OwnedFd) -> Option<Stat> {
    let stat = rustix::fs::fstat(dir).ok()?;
    (stat.st_uid == 0 && stat.st_mode & 0o022 == 0 && stat.st_mode & 0o001 != 0).then_some(stat)
}

/// Creates a directory for the user. Returns whether that was allowed and worked.
pub fn make_dir(path: &Path, identity: &Identity) -> bool {
    let Some(place) = Place::of(path) else { return false };
    let made = rustix::fs::mkdirat(&place.dir, place.name, Mode::from_raw_mode(0o755));
    let opened =
        made.and_then(|()| dirs::open(&place.dir, Path::new(place.name), OFlags::RDONLY | OFlags::NOFOLLOW));
    opened.and_then(|dir| dirs::give_to(&dir, identity)).is_ok()
}

/// Creates a file for the user.
pub fn create_file(path: &Path, identity: &Identity) -> Option<File> {
    let place = Place::of(path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&place.dir, place.name, flags, Mode::from_raw_mode(0o666)).ok()?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::fs::fchown(&file, Some(uid), Some(gid)).ok()?;
    Some(file.into())
}

/// Removes an entry of the user's; a directory must be empty. Returns whether that was allowed and worked.
pub fn remove(path: &Path, identity: &Identity) -> bool {
    let Some(place) = Place::of(path) else { return false };
    let Some(entry) = place.entry().filter(|entry| entry.st_uid == identity.uid) else { return false };
    let is_dir = rustix::fs::FileType::from_raw_mode(entry.st_mode).is_dir();
    let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(&place.dir, place.name, flags).is_ok()
}

/// Renames an entry of the user's; what is replaced must be the user's, too. Returns whether that was allowed and worked.
pub fn rename(source: &Path, destination: &Path, identity: &Identity) -> bool {
    let (Some(from), Some(to)) = (Place::of(source), Place::of(destination)) else { return false };
    let is_own = |entry: Stat| entry.st_uid == identity.uid;
    from.entry().is_some_and(is_own)
        && to.entry().is_none_or(is_own)
        && rustix::fs::renameat(&from.dir, from.name, &to.dir, to.name).is_ok()
}
