//! Copies a tree with owners, modes, times, links, attributes, holes, and the special files of overlayfs.
//! Content is shared with the original by `FICLONE` or copied. No other process may change the target meanwhile; nothing is synced.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, copy_file_range,
    fchmod, fchown, fstat, ftruncate, futimens, ioctl_ficlone, linkat, mkdirat, mknodat, openat, readlinkat,
    seek, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::xattrs::{Attributes, copy_xattrs, entry_path};
use walk::{Id, Visitor, changed, id_of, open_dir, open_parent, visit};

/// Maximum number of bytes that one call copies, so that no single call takes long.
const CHUNK: usize = 64 << 20;

/// How the content of files is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The copy refers to the same blocks until one of both is written.
    Reflink,
    /// The copy has blocks of its own.
    Copy,
}

/// Copies the entries of `from` into the empty directory `to`, and `from`'s own owner, mode, times and attributes. `links` is an
/// empty directory on the same file system; it gets a name for each file that has several.
///
/// # Errors
/// `from` cannot be read or changes meanwhile, or `to` cannot be written.
pub(crate) fn copy_tree(
    from: OwnedFd,
    to: OwnedFd,
    links: &OwnedFd,
    sharing: Sharing,
    attributes: Attributes,
) -> io::Result<()> {
    let known = HashMap::new();
    let mut copier = Copier { here: to, above: Vec::new(), links, known, kept: 0, sharing, attributes };
    visit(from, &mut copier)
}

struct Copier<'a> {
    /// The directory being filled.
    here: OwnedFd,
    /// Its parent directories, from the top.
    above: Vec<Id>,
    links: &'a OwnedFd,
    /// Files with several names: their number in `links`.
    known: HashMap<Id, u64>,
    /// Number of names ever created in `links`.
    kept: u64,
    sharing: Sharing,
    attributes: Attributes,
}

impl Visitor for Copier<'_> {
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        if stat.st_nlink > 1
            && let Some(number) = self.known.get(&id_of(stat))
        {
            match linkat(self.links, number.to_string(), &self.here, name, AtFlags::empty()) {
                // The name in `links` is one more than the original has, which can exceed the limit: further names get a second copy.
                Err(Errno::MLINK) => drop(self.known.remove(&id_of(stat))),
                answer => return Ok(answer?),
            }
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.regular(dir, name, stat)?,
            FileType::Symlink => {
                symlinkat(readlinkat(dir, name, Vec::new())?, &self.here, name)?;
                self.copy_metadata(dir, name, stat)?;
            }
            kind => {
                mknodat(&self.here, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?;
                self.copy_metadata(dir, name, stat)?;
            }
        }
        if stat.st_nlink > 1 {
            self.kept += 1;
            linkat(&self.here, name, self.links, self.kept.to_string(), AtFlags::empty())?;
            self.known.insert(id_of(stat), self.kept);
        }
        Ok(())
    }

    fn enter(&mut self, name: &CStr) -> io::Result<()> {
        mkdirat(&self.here, name, Mode::from_raw_mode(0o700))?;
        let next = open_dir(&self.here, name)?;
        self.above.push(id_of(&fstat(&self.here)?));
        self.here = next;
        Ok(())
    }

    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let stat = fstat(dir)?;
        set_owner_and_mode(&self.here, &stat)?;
        copy_xattrs(&entry_path(dir, c"."), &entry_path(&self.here, c"."), self.attributes)?;
        futimens(&self.here, &times(&stat))?;
        if let Some(above) = self.above.pop() {
            self.here = open_parent(&self.here, above)?;
        }
        Ok(())
    }
}

impl Copier<'_> {
    /// Copies a regular file.
    fn regular(&self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let from: File = openat(dir, name, OFlags::RDONLY | OFlags::NOATIME | flags, Mode::empty())?.into();
        let opened = fstat(&from)?;
        if id_of(&opened) != id_of(stat) || FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile {
            return Err(changed());
        }
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
        let to: File = openat(&self.here, name, create, Mode::from_raw_mode(0o600))?.into();
        self.content(&from, &to, u64::try_from(opened.st_size).unwrap_or(0))?;
        set_owner_and_mode(&to, &opened)?;
        // After the owner: changing that removes file capabilities.
        copy_xattrs(&entry_path(dir, name), &entry_path(&self.here, name), self.attributes)?;
        Ok(futimens(&to, &times(&opened))?)
    }

    /// Copies the content of a file, with its holes.
    fn content(&self, from: &File, to: &File, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.sharing == Sharing::Reflink {
            return Ok(ioctl_ficlone(to, from)?);
        }
        ftruncate(to, size)?;
        let mut position = 0;
        while position < size {
            let start = match seek(from, rustix::fs::SeekFrom::Data(position)) {
                // Only a hole follows.
                Err(Errno::NXIO) => break,
                answer => answer?,
            };
            let end = seek(from, rustix::fs::SeekFrom::Hole(start))?.min(size);
            copy_range(from, to, start, end)?;
            position = end.max(start + 1);
        }
        Ok(())
    }

    /// Copies owner, mode, attributes and times of an entry that cannot be opened.
    fn copy_metadata(&self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let (user, group) = owners(stat);
        chownat(&self.here, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            // Created by us and not a link, so nothing is followed.
            chmodat(&self.here, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
        copy_xattrs(&entry_path(dir, name), &entry_path(&self.here, name), self.attributes)?;
        Ok(utimensat(&self.here, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let wanted = usize::try_from(end - read_at).unwrap_or(CHUNK).min(CHUNK);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            // The file was truncated meanwhile.
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return through_memory(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies a range by reading and writing, for file systems without `copy_file_range`.
fn through_memory(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0u8; 1 << 20];
    let mut position = start;
    while position < end {
        let wanted = usize::try_from(end - position).unwrap_or(buffer.len()).min(buffer.len());
        let count = from.read_at(&mut buffer[..wanted], position)?;
        if count == 0 {
            break;
        }
        to.write_all_at(&buffer[..count], position)?;
        position += count as u64;
    }
    Ok(())
}

/// Sets owner and mode of an open file as in `stat`.
fn set_owner_and_mode(file: impl AsFd, stat: &Stat) -> io::Result<()> {
    let (user, group) = owners(stat);
    fchown(&file, user, group)?;
    // After the owner: changing that clears the set-user-id bit.
    Ok(fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

fn owners(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}
