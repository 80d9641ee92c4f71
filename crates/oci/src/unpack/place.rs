//! Finds and creates the directory that an entry belongs to. Symlinks on the way are resolved as inside the image.
//! Every step is relative to an open directory and follows nothing: a link's target is walked step by step, from the layer's root.
//! A directory that the layer does not describe is created like that in the layers below.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, fstat, mkdirat, openat2, readlinkat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::{Attributes, disinherit, kept_xattr, make_opaque, passes_on, set_time, xattrs_of};
use super::lower::{LowerFile, Lowers, is_whiteout, open_dir};
use super::names::{MAX_DEPTH, MAX_PATH};
use crate::OciError;
use crate::budget::Budget;
use crate::tarball::refused;

/// Maximum number of symlinks on the way to an entry, as in the kernel.
const MAX_LINKS: usize = 40;

/// Maximum number of directories on the way to an entry, including those in targets of links.
const MAX_STEPS: usize = 2000;
/// Maximum size of the paths that are remembered for [`Tree::holds_only_marks`].
const MAX_IMPLIED: usize = 16 << 20;

/// The tree that is being unpacked.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    lowers: Lowers,
    budget: &'a Budget,
    /// Paths of directories that no entry describes.
    implied: HashSet<Vec<u8>>,
    /// Number of bytes left for their paths.
    room: usize,
    /// Whether the result depends on the layers below.
    pub(super) asked_below: bool,
}

/// An open directory of the tree.
pub(super) struct OpenDir {
    pub(super) dir: OwnedFd,
    /// Its path without any symlinks.
    pub(super) path: Vec<Vec<u8>>,
    /// Its modification time, to be restored after it is filled.
    modified: Timespec,
    /// Whether new entries inherit permissions from it.
    passes_on: bool,
}

impl OpenDir {
    fn new(dir: OwnedFd, path: Vec<Vec<u8>>) -> Result<Self, Errno> {
        let (stat, passes_on) = (fstat(&dir)?, passes_on(&dir)?);
        let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        Ok(Self { dir, path, modified, passes_on })
    }

    /// To be called for a new entry, before its metadata is set.
    pub(super) fn got(&self, name: &[u8]) -> Result<(), Errno> {
        if self.passes_on { disinherit(&self.dir, name) } else { Ok(()) }
    }

    /// Restores the directory's modification time, which creating entries changed.
    pub(super) fn restore_mtime(&self) -> Result<(), Errno> {
        set_time(&self.dir, b".", self.modified)
    }

    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        self.path.iter().map(Vec::as_slice).chain([name]).collect::<Vec<_>>().join(&b'/')
    }
}

/// A part of the way to an entry.
enum Step {
    Enter,
    Follow(Vec<u8>),
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: OwnedFd, lowers: Lowers, budget: &'a Budget) -> Self {
        Self { root, lowers, budget, implied: HashSet::new(), room: MAX_IMPLIED, asked_below: false }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Returns the file of the layers below at a path without symlinks.
    pub(super) fn below(&mut self, place: &OpenDir, name: &[u8]) -> Result<Option<LowerFile>, Errno> {
        self.asked_below = true;
        let path: Vec<&[u8]> = place.path.iter().map(Vec::as_slice).chain([name]).collect();
        self.lowers.find(&path)
    }

    /// Returns the directory with these parts, creating it if necessary. `entry` is for messages.
    pub(super) fn dir(
        &mut self,
        entry: &[u8],
        parts: &[&[u8]],
        modified: Timespec,
    ) -> Result<OpenDir, OciError> {
        if let Some(place) = self.straight(parts).map_err(|error| failed(entry, error))? {
            return Ok(place);
        }
        let fail = |error: Errno| failed(entry, error);
        let mut place = self.root_place().map_err(fail)?;
        let (mut links, mut steps) = (0, 0);
        let mut ahead: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        while let Some(part) = ahead.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(refused(entry, "is behind symlinks that lead too far about"));
            }
            if part == b".." {
                place.path.pop();
                let above = self.reopen(&place.path).map_err(fail)?;
                place = OpenDir::new(above, place.path).map_err(fail)?;
                continue;
            }
            match self.step(entry, &place, &part, modified)? {
                Step::Enter => {
                    let next = open_dir(&place.dir, &*part).map_err(fail)?;
                    place.path.push(part);
                    place = OpenDir::new(next, place.path).map_err(fail)?;
                    if place.path.len() > MAX_DEPTH {
                        return Err(refused(entry, "is more than 200 directories deep"));
                    }
                }
                Step::Follow(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refused(entry, "is behind more than 40 symlinks"));
                    }
                    if target.starts_with(b"/") {
                        place = self.root_place().map_err(fail)?;
                    }
                    let parts = target.split(|byte| *byte == b'/');
                    let parts: Vec<_> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
                    parts.iter().rev().for_each(|part| ahead.push_front(part.to_vec()));
                }
            }
        }
        Ok(place)
    }

    fn root_place(&self) -> Result<OpenDir, Errno> {
        OpenDir::new(open_dir(&self.root, c".")?, Vec::new())
    }

    /// Returns the directory if it exists and no symlink leads to it: one system call for nearly every entry.
    fn straight(&self, parts: &[&[u8]]) -> Result<Option<OpenDir>, Errno> {
        match self.reopen(parts) {
            Ok(dir) => OpenDir::new(dir, parts.iter().map(|part| part.to_vec()).collect()).map(Some),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a directory of the tree by its path without symlinks.
    pub(super) fn reopen<P: AsRef<[u8]>>(&self, path: &[P]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return open_dir(&self.root, c".");
        }
        let joined = path.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(&b'/');
        if joined.len() > MAX_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, joined, flags, Mode::empty(), resolve)
    }

    /// Enters or creates the directory of one part of the way, or returns the link that is there.
    fn step(
        &mut self,
        entry: &[u8],
        place: &OpenDir,
        part: &[u8],
        modified: Timespec,
    ) -> Result<Step, OciError> {
        let fail = |error: Errno| failed(entry, error);
        let mut was_gone = false;
        match statat(&place.dir, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Ok(Step::Enter),
                FileType::Symlink => {
                    let target = readlinkat(&place.dir, part, Vec::new()).map_err(fail)?;
                    return Ok(Step::Follow(target.into_bytes()));
                }
                _ if is_whiteout(&stat) => {
                    unlinkat(&place.dir, part, AtFlags::empty()).map_err(fail)?;
                    was_gone = true;
                }
                _ => return Err(refused(entry, "is inside something that is no directory")),
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(fail(error)),
        }
        let below = if was_gone { None } else { self.below(place, part).map_err(fail)? };
        let attributes = match below {
            Some(found) if found.kind() == FileType::Symlink => {
                let target = readlinkat(&found.dir, &*found.name, Vec::new()).map_err(fail)?;
                return Ok(Step::Follow(target.into_bytes()));
            }
            Some(found) if found.kind() == FileType::Directory => of_found(&found).map_err(fail)?,
            _ => Attributes::plain_dir(modified),
        };
        self.budget.add_dir()?;
        mkdirat(&place.dir, part, Mode::from_raw_mode(0o700)).map_err(fail)?;
        place.got(part).map_err(fail)?;
        attributes.give(&place.dir, part, false).map_err(fail)?;
        place.restore_mtime().map_err(fail)?;
        if was_gone {
            make_opaque(&open_dir(&place.dir, part).map_err(fail)?).map_err(fail)?;
        }
        let path = place.path_of(part);
        if path.len() <= self.room {
            self.room -= path.len();
            self.implied.insert(path);
        }
        Ok(Step::Enter)
    }

    /// To be called when an entry describes a directory.
    pub(super) fn described(&mut self, path: &[u8]) {
        if self.implied.remove(path) {
            self.room += path.len();
        }
    }

    /// Returns whether a whiteout in this directory has an effect: some tools write whiteouts into directories that the same layer
    /// replaces by another file, where there is nothing to hide.
    pub(super) fn can_hide(&mut self, entry: &[u8], parts: &[&[u8]]) -> Result<bool, OciError> {
        let fail = |error: Errno| failed(entry, error);
        let mut place = self.root_place().map_err(fail)?;
        for part in parts {
            match statat(&place.dir, *part, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    let next = open_dir(&place.dir, *part).map_err(fail)?;
                    place.path.push(part.to_vec());
                    place = OpenDir::new(next, place.path).map_err(fail)?;
                }
                Ok(_) => return Ok(false),
                Err(Errno::NOENT) => {
                    let below = self.below(&place, part).map_err(fail)?;
                    return Ok(below.is_some_and(|found| {
                        matches!(found.kind(), FileType::Directory | FileType::Symlink)
                    }));
                }
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(true)
    }

    /// Returns whether this directory contains whiteouts only. If not, that is remembered, so that an archive cannot have a large
    /// directory scanned again and again.
    pub(super) fn holds_only_marks(&mut self, place: &OpenDir, name: &[u8]) -> Result<bool, Errno> {
        let path = place.path_of(name);
        if !self.implied.contains(&path) {
            return Ok(false);
        }
        let answer = self.has_only_marks(path.clone())?;
        if !answer {
            self.described(&path);
        }
        Ok(answer)
    }

    fn has_only_marks(&self, path: Vec<u8>) -> Result<bool, Errno> {
        let mut dirs = vec![path];
        while let Some(path) = dirs.pop() {
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            let dir = match self.reopen(&parts) {
                // No longer a directory.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                answer => answer?,
            };
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let inner = [&path[..], b"/", name].concat();
                if self.implied.contains(&inner)
                    && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                {
                    dirs.push(inner);
                } else if !is_whiteout(&stat) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Returns the metadata of a file in a layer below, without overlayfs' own attributes.
pub(super) fn of_found(found: &LowerFile) -> Result<Attributes, Errno> {
    let xattrs = xattrs_of(&found.dir, &found.name)?;
    let kept = xattrs.into_iter().filter_map(|(name, value)| {
        let value = kept_xattr(&name, &value, false)?;
        Some((name, value))
    });
    Ok(Attributes {
        user: found.stat.st_uid,
        group: found.stat.st_gid,
        mode: found.stat.st_mode & 0o7777,
        modified: Timespec { tv_sec: found.stat.st_mtime, tv_nsec: found.stat.st_mtime_nsec as _ },
        xattrs: kept.collect(),
    })
}

/// Converts an error of a system call for an entry.
pub(super) fn failed(entry: &[u8], error: impl Into<std::io::Error>) -> OciError {
    let shown = &entry[..entry.len().min(200)];
    OciError::at(std::path::Path::new(&*String::from_utf8_lossy(shown)))(error)
}
