//! [`VolumeRoot`]: the content of one volume, as the content API reads and writes it.
//! Protocol: E2B's `/volumecontent` routes; where the original is not known, a conflict is told and nothing is left half done.

mod entry;
mod files;
mod list;
mod path;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid, chmodat, chownat, mkdirat,
    openat2, readlinkat, statx,
};
use rustix::io::Errno;

pub use entry::{Entry, EntryKind};
pub use files::{NewFile, ReadFile};
pub use list::MAX_DEPTH;
pub use path::VolumePath;

use crate::error::VolumeError;

/// Owner and group of what is created without one: the user of sandboxes.
pub const DEFAULT_OWNER: u32 = 1000;
/// Mode of directories that are created without one.
pub const DEFAULT_DIR_MODE: u32 = 0o755;
/// Mode of files that are created without one.
pub const DEFAULT_FILE_MODE: u32 = 0o644;
/// Permission bits, which include set-user-id and the sticky bit.
const MODE_BITS: u32 = 0o7777;
/// A path never leaves the root, wherever links in it lead.
const WITHIN: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// How often a path is resolved while a sandbox renames directories.
const RESOLVE_ATTEMPTS: usize = 64;

/// Owner and mode to be set; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
}

/// How something is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Owner and mode; by default those of this module's constants.
    pub attributes: Attributes,
    /// Whether missing parents are created and an existing one is accepted.
    pub force: bool,
}

/// The root directory of a volume.
#[derive(Debug)]
pub struct VolumeRoot(OwnedFd);

impl AsFd for VolumeRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl VolumeRoot {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self(root)
    }

    /// Returns what is at a path; a symbolic link itself.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn stat(&self, path: &VolumePath) -> Result<Entry, VolumeError> {
        let found = self.find(path)?;
        entry_at(found.as_fd(), c"", path)
    }

    /// Sets owner and mode of what a path leads to, and returns it.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], or [`VolumeError::Invalid`] for bits that are no permissions.
    pub fn set_attributes(&self, path: &VolumePath, attributes: Attributes) -> Result<Entry, VolumeError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = self.resolve(path, flags)?;
        apply(found.as_fd(), attributes)?;
        self.stat(path)
    }

    /// Removes a file, a symbolic link itself, or a directory with everything in it, for as long as `is_wanted` says so.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::Unfinished`], or [`VolumeError::Invalid`] for the root.
    pub fn remove(&self, path: &VolumePath, is_wanted: impl FnMut() -> bool) -> Result<(), VolumeError> {
        let Some(name) = path.name() else { return Err(VolumeError::Invalid("cannot delete root".into())) };
        let parent = self.open_dir(&path.parent())?;
        // `remove` takes a path: this one leads through the descriptor, and its last part is not followed.
        Ok(walk::remove_while(&super::trees::path_in(&parent, name), is_wanted)?)
    }

    /// Creates a directory and returns it. With `force`, missing parents are created, and a directory that exists is returned unchanged.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::NotFound`] for a missing parent, [`VolumeError::NotDirectory`].
    pub fn make_dir(&self, path: &VolumePath, options: CreateOptions) -> Result<Entry, VolumeError> {
        let Some(name) = path.name() else {
            return if options.force { self.stat(path) } else { Err(VolumeError::Exists) };
        };
        let parent = self.open_parent(path, options)?;
        match make_one_dir(parent.as_fd(), name, options.attributes) {
            Err(VolumeError::Exists) if options.force => match self.open_dir(path) {
                Err(VolumeError::NotDirectory | VolumeError::NotFound) => Err(VolumeError::Exists),
                opened => opened.and_then(|_| self.stat(path)),
            },
            made => made.and_then(|()| self.stat(path)),
        }
    }

    /// Opens a directory to be mounted; links are followed within the volume.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::NotDirectory`].
    pub fn directory(&self, path: &VolumePath) -> Result<OwnedFd, VolumeError> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// Opens the directory that is to contain `path`; with `force`, makes what is missing of it.
    fn open_parent(&self, path: &VolumePath, options: CreateOptions) -> Result<OwnedFd, VolumeError> {
        let parent = path.parent();
        match self.open_dir(&parent) {
            Err(VolumeError::NotFound) if options.force => {}
            opened => return opened,
        }
        // The mode is that of the directory or file which is asked for, not of those on the way.
        let attributes = Attributes { mode: None, ..options.attributes };
        for dir in parent.ancestors() {
            let Some(name) = dir.name() else { continue };
            let above = self.open_dir(&dir.parent())?;
            match make_one_dir(above.as_fd(), name, attributes) {
                Err(VolumeError::Exists) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        self.open_dir(&parent)
    }

    /// Opens a directory; links are followed within the volume.
    fn open_dir(&self, path: &VolumePath) -> Result<OwnedFd, VolumeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.resolve(path, flags)
    }

    /// Opens what is at a path, a symbolic link itself, without being able to read it.
    fn find(&self, path: &VolumePath) -> Result<OwnedFd, VolumeError> {
        self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    /// Opens a path within the volume.
    fn resolve(&self, path: &VolumePath, flags: OFlags) -> Result<OwnedFd, VolumeError> {
        let path = path.relative();
        for _ in 0..RESOLVE_ATTEMPTS {
            match openat2(&self.0, &path, flags, Mode::empty(), WITHIN) {
                // Something was renamed meanwhile, so the kernel cannot tell that `..` stays within.
                Err(Errno::AGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        Err(VolumeError::Busy)
    }
}

/// Makes a directory with its owner and mode.
fn make_one_dir(
    parent: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    attributes: Attributes,
) -> Result<(), VolumeError> {
    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat2(parent, name, flags, Mode::empty(), WITHIN)?;
    apply(dir.as_fd(), with_defaults(attributes, DEFAULT_DIR_MODE))
}

/// Fills in the default owner and mode.
fn with_defaults(attributes: Attributes, mode: u32) -> Attributes {
    Attributes {
        uid: Some(attributes.uid.unwrap_or(DEFAULT_OWNER)),
        gid: Some(attributes.gid.unwrap_or(DEFAULT_OWNER)),
        mode: Some(attributes.mode.unwrap_or(mode)),
    }
}

/// Sets owner and mode of an open file, also of one that was opened as a path only.
fn apply(file: BorrowedFd<'_>, attributes: Attributes) -> Result<(), VolumeError> {
    let Attributes { uid, gid, mode } = attributes;
    if mode.is_some_and(|mode| mode & !MODE_BITS != 0) {
        return Err(VolumeError::Invalid("mode has bits that are no permissions".into()));
    }
    // The kernel takes this number for "as it is".
    if [uid, gid].contains(&Some(u32::MAX)) {
        return Err(VolumeError::Invalid("uid and gid must be less than 4294967295".into()));
    }
    if uid.is_some() || gid.is_some() {
        chownat(file, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
    }
    // After the owner: a change of that takes set-user-id away.
    let Some(mode) = mode else { return Ok(()) };
    Ok(chmodat(CWD, super::trees::path_of(file), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Returns the entry `name` of an open directory, or with an empty name the open file itself, under the path `path`.
fn entry_at(dir: BorrowedFd<'_>, name: &std::ffi::CStr, path: &VolumePath) -> Result<Entry, VolumeError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let found = statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
    let target = match kind {
        FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
            // It was replaced meanwhile.
            Err(Errno::INVAL) => return Err(VolumeError::NotFound),
            target => Some(target?),
        },
        _ => None,
    };
    Ok(Entry::new(path, &found, target.as_deref()))
}
