//! Unpacks a layer's tar stream, which is untrusted, to a directory tree as overlayfs needs it.
//! Whiteouts become character devices 0:0, opaque directories an attribute; such devices and attributes of the archive itself are never
//! taken. Nothing is read or written outside the layer's directory, and the budget limits the costs.

pub(crate) mod attributes;
pub(crate) mod lower;
mod names;
mod place;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, linkat, makedev, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::OciError;
use crate::budget::{Budget, DIR};
use crate::tarball::{Kind, TarEntry, TarReader, refused};
use attributes::{Attributes, entry_path, make_opaque, set_time};
pub(crate) use attributes::{MAX_ID, Warnings};
use lower::{Lowers, is_whiteout, open_dir};
pub(crate) use names::{MAX_DEPTH, MAX_PART};
use names::{Meaning, meaning, parts};
use place::{OpenDir, Tree, failed, of_found};

/// The origin of a layer's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// An image.
    Image,
    /// A template's archive, which may also contain renamed directories, sockets, device nodes and any names.
    Template,
}

/// Unpacks a layer to the new directory `root`. `below` are the layers below, uppermost first. Returns whether the result depends on
/// them. Blocks.
pub(crate) fn unpack(
    archive: impl Read,
    root: &Path,
    below: &[PathBuf],
    source: Source,
    budget: &Budget,
    warnings: &mut Warnings,
) -> Result<bool, OciError> {
    fs::create_dir(root).map_err(OciError::at(root))?;
    let top = open_dir(CWD, root).map_err(OciError::at(root))?;
    let tree = Tree::new(top, Lowers::open(below)?, budget);
    tree.root_is_plain().map_err(OciError::at(root))?;
    let archive = TarReader::new(archive);
    let mut unpacker =
        Unpacker { archive, tree, last: None, source, budget, warnings, buffer: vec![0; 256 << 10] };
    while let Some(entry) = unpacker.archive.next()? {
        budget.add_entries(1)?;
        unpacker.add(&entry)?;
    }
    unpacker.archive.drain()?;
    Ok(unpacker.tree.asked_below)
}

impl Tree<'_> {
    fn root_is_plain(&self) -> Result<(), Errno> {
        Attributes::plain_dir(Timespec { tv_sec: 0, tv_nsec: 0 }).give(self.root(), b".", false)
    }
}

struct Unpacker<'a, R> {
    archive: TarReader<R>,
    tree: Tree<'a>,
    /// The directory of the previous entry, by the parts of its name. The next entry is mostly in the same directory.
    last: Option<(Vec<u8>, OpenDir)>,
    source: Source,
    budget: &'a Budget,
    warnings: &'a mut Warnings,
    buffer: Vec<u8>,
}

impl<R: Read> Unpacker<'_, R> {
    fn add(&mut self, entry: &TarEntry) -> Result<(), OciError> {
        let parts = parts(&entry.name)?;
        let is_template = self.source == Source::Template;
        let meaning =
            if is_template && entry.is_literal { Meaning::Plain } else { meaning(&entry.name, &parts)? };
        let attributes = Attributes::of(entry, is_template, self.warnings);
        let Some((name, above)) = parts.split_last() else { return self.root(entry, &attributes) };
        if meaning == Meaning::Nothing {
            return Ok(());
        }
        let key = above.join(&b'/');
        let place = match self.last.take() {
            Some((known, place)) if known == key => place,
            _ if meaning != Meaning::Plain && !self.tree.can_hide(&entry.name, above)? => return Ok(()),
            _ => self.tree.dir(&entry.name, above, attributes.modified)?,
        };
        let keeps = match meaning {
            Meaning::Opaque => {
                make_opaque(&place.dir).map(|()| true).map_err(|error| failed(&entry.name, error))
            }
            Meaning::Whiteout(gone) => self.whiteout(entry, &attributes, &place, gone),
            _ => self.place(entry, &attributes, &place, name),
        }?;
        place.restore_mtime().map_err(|error| failed(&entry.name, error))?;
        if keeps {
            self.last = Some((key, place));
        }
        Ok(())
    }

    fn root(&mut self, entry: &TarEntry, attributes: &Attributes) -> Result<(), OciError> {
        if entry.kind != Kind::Directory {
            return Err(refused(&entry.name, "would replace the root directory"));
        }
        // It may be the remembered directory, with its old metadata.
        self.last = None;
        attributes.give(self.tree.root(), b".", false).map_err(|error| failed(&entry.name, error))
    }

    /// Adds a whiteout, which hides only files of the layers below. Files of this layer stay, whatever the order.
    fn whiteout(
        &mut self,
        entry: &TarEntry,
        attributes: &Attributes,
        place: &OpenDir,
        gone: &[u8],
    ) -> Result<bool, OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        match statat(&place.dir, gone, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) if self.tree.holds_only_marks(place, gone).map_err(fail)? => {
                fs::remove_dir_all(entry_path(&place.dir, gone))
                    .map_err(|error| failed(&entry.name, error))?;
                self.whiteout(entry, attributes, place, gone)?;
                return Ok(false);
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                make_opaque(&open_dir(&place.dir, gone).map_err(fail)?).map_err(fail)?;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                mknodat(&place.dir, gone, FileType::CharacterDevice, Mode::empty(), 0).map_err(fail)?;
                place.got(gone).map_err(fail)?;
                set_time(&place.dir, gone, attributes.modified).map_err(fail)?;
                if self.source == Source::Template {
                    attributes.give(&place.dir, gone, false).map_err(fail)?;
                }
            }
            Err(error) => return Err(fail(error)),
        }
        Ok(true)
    }

    /// Creates an entry. Returns whether the previous entry's directory is certainly still the same.
    fn place(
        &mut self,
        entry: &TarEntry,
        attributes: &Attributes,
        place: &OpenDir,
        name: &[u8],
    ) -> Result<bool, OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        let there = match statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(fail(error)),
        };
        if entry.kind == Kind::Directory {
            return self.dir(entry, attributes, place, name, there.as_ref());
        }
        // LowerFile before anything is removed: it may be the entry that is in the way.
        let origin = if entry.kind == Kind::Link { Some(self.origin(entry)?) } else { None };
        if let (Some((dir, target)), Some(there)) = (&origin, &there) {
            let stat = statat(&dir.dir, &**target, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            if (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino) {
                return Ok(true);
            }
        }
        if let Some(there) = &there {
            remove(place, name, there).map_err(|error| failed(&entry.name, error))?;
        }
        match (entry.kind, origin) {
            (Kind::File, _) => self.file(entry, attributes, place, name)?,
            (Kind::Symlink, _) => {
                if entry.target.is_empty()
                    || entry.target.len() > names::MAX_PATH
                    || entry.target.contains(&0)
                {
                    return Err(refused(&entry.name, "is a symlink to something that is no path"));
                }
                symlinkat(&*entry.target, &place.dir, name).map_err(fail)?;
                attributes.give(&place.dir, name, true).map_err(fail)?;
            }
            (Kind::Link, Some((origin, target))) => {
                linkat(&origin.dir, &*target, &place.dir, name, AtFlags::empty()).map_err(fail)?;
            }
            (Kind::Device, _) if self.source == Source::Image || entry.device == (0, 0) => {
                self.warnings.add(&entry.name, "device nodes do not work in sandboxes; it was left out");
            }
            (kind, _) => {
                let device = makedev(entry.device.0, entry.device.1);
                let (kind, device) = match kind {
                    Kind::Device if entry.is_block => (FileType::BlockDevice, device),
                    Kind::Device => (FileType::CharacterDevice, device),
                    _ if self.source == Source::Template && entry.is_socket => (FileType::Socket, 0),
                    _ => (FileType::Fifo, 0),
                };
                mknodat(&place.dir, name, kind, Mode::from_raw_mode(0o600), device).map_err(fail)?;
                place.got(name).map_err(fail)?;
                attributes.give(&place.dir, name, false).map_err(fail)?;
            }
        }
        Ok(there.is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile))
    }

    fn dir(
        &mut self,
        entry: &TarEntry,
        attributes: &Attributes,
        place: &OpenDir,
        name: &[u8],
        there: Option<&Stat>,
    ) -> Result<bool, OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        let is_dir = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let is_new = !there.is_some_and(is_dir);
        if is_new {
            if there.is_some() {
                unlinkat(&place.dir, name, AtFlags::empty()).map_err(fail)?;
            }
            self.budget.add_bytes(DIR)?;
            mkdirat(&place.dir, name, Mode::from_raw_mode(0o700)).map_err(fail)?;
            place.got(name).map_err(fail)?;
        }
        attributes.give(&place.dir, name, false).map_err(fail)?;
        if is_new && there.is_some() {
            // A file or whiteout that this layer had there hid the directory below; so must this one.
            make_opaque(&open_dir(&place.dir, name).map_err(fail)?).map_err(fail)?;
        }
        self.tree.described(&place.path_of(name));
        Ok(!is_new || there.is_none())
    }

    fn file(
        &mut self,
        entry: &TarEntry,
        attributes: &Attributes,
        place: &OpenDir,
        name: &[u8],
    ) -> Result<(), OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&place.dir, name, flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
        let mut file = File::from(file);
        match &entry.segments {
            None => self.copy(&mut file, entry.size, &entry.name)?,
            Some(segments) => {
                // Holes take no space, but are read when the layer is copied or hashed.
                let stored: u64 = segments.iter().map(|segment| segment.length).sum();
                self.budget.add_bytes(entry.size.saturating_sub(stored))?;
                for segment in segments {
                    file.seek(SeekFrom::Start(segment.offset)).map_err(|error| failed(&entry.name, error))?;
                    self.copy(&mut file, segment.length, &entry.name)?;
                }
                file.set_len(entry.size).map_err(|error| failed(&entry.name, error))?;
            }
        }
        drop(file);
        place.got(name).map_err(fail)?;
        attributes.give(&place.dir, name, false).map_err(fail)
    }

    fn copy(&mut self, file: &mut File, mut length: u64, entry: &[u8]) -> Result<(), OciError> {
        while length > 0 {
            let most = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = self.archive.read(&mut self.buffer[..most]).map_err(crate::tarball::unreadable)?;
            if count == 0 {
                return Err(refused(entry, "is shorter than it says"));
            }
            file.write_all(&self.buffer[..count]).map_err(|error| failed(entry, error))?;
            length -= count as u64;
        }
        Ok(())
    }

    /// Returns directory and name of the target of a hard link. A target in a layer below is copied to this one.
    fn origin(&mut self, entry: &TarEntry) -> Result<(OpenDir, Vec<u8>), OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        let target = parts(&entry.target)
            .map_err(|_| refused(&entry.name, "is a hard link to a name that cannot be"))?;
        let Some((name, above)) = target.split_last() else {
            return Err(refused(&entry.name, "is a hard link to the root directory"));
        };
        let place = self.tree.dir(&entry.name, above, Timespec { tv_sec: entry.modified.0, tv_nsec: 0 })?;
        match statat(&place.dir, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => Err(refused(&entry.name, "is a hard link to nothing")),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Err(refused(&entry.name, "is a hard link to a directory"))
            }
            Ok(_) => Ok((place, name.to_vec())),
            Err(Errno::NOENT) => {
                self.copy_up(entry, &place, name)?;
                Ok((place, name.to_vec()))
            }
            Err(error) => Err(fail(error)),
        }
    }

    fn copy_up(&mut self, entry: &TarEntry, place: &OpenDir, name: &[u8]) -> Result<(), OciError> {
        let fail = |error: Errno| failed(&entry.name, error);
        let Some(found) = self.tree.below(place, name).map_err(fail)? else {
            return Err(refused(&entry.name, "is a hard link to nothing"));
        };
        match found.kind() {
            FileType::Symlink => {
                let target = readlinkat(&found.dir, &*found.name, Vec::new()).map_err(fail)?;
                symlinkat(&target, &place.dir, name).map_err(fail)?;
            }
            FileType::RegularFile => {
                self.budget.add_bytes(u64::try_from(found.stat.st_size).unwrap_or(0))?;
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = openat(&found.dir, &*found.name, OFlags::RDONLY | flags, Mode::empty());
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
                let to = openat(&place.dir, name, create, Mode::from_raw_mode(0o600)).map_err(fail)?;
                io::copy(&mut File::from(from.map_err(fail)?), &mut File::from(to))
                    .map_err(|error| failed(&entry.name, error))?;
            }
            _ => return Err(refused(&entry.name, "is a hard link to something that is no file")),
        }
        place.got(name).map_err(fail)?;
        let attributes = of_found(&found).map_err(fail)?;
        attributes.give(&place.dir, name, found.kind() == FileType::Symlink).map_err(fail)?;
        place.restore_mtime().map_err(fail)
    }
}

/// Removes the file of an earlier entry of the same layer.
fn remove(place: &OpenDir, name: &[u8], there: &Stat) -> io::Result<()> {
    if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
        return fs::remove_dir_all(entry_path(&place.dir, name));
    }
    Ok(unlinkat(&place.dir, name, AtFlags::empty())?)
}
