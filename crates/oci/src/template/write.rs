//! Writes a layer as a tar stream, the reverse of unpacking. The same layer always gives the same bytes.
//! The tree is untrusted, so it is walked through open directories and no link is followed. A file that could not be read back as the
//! same is an error that names it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use layers::LayerDigest;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::OciError;
use crate::tarball::{LITERAL, SOCKET, XATTR};
use crate::unpack::attributes::{OPAQUE, is_opaque, kept_xattr, xattrs_of};
use crate::unpack::lower::{is_whiteout, open_dir};
use crate::unpack::{MAX_DEPTH, MAX_ID, MAX_PART};

/// Writes the layer at `root`.
pub(super) fn write_layer(layer: &LayerDigest, root: &Path, to: impl Write) -> Result<(), OciError> {
    let top = open_dir(CWD, root).map_err(OciError::at(root))?;
    let mut writer = Writer { layer, tar: Builder::new(to), links: HashMap::new() };
    let stat = fstat(&top).map_err(OciError::at(root))?;
    writer.dir(b"", &top, &stat, 0)?;
    writer.tar.into_inner().and_then(|mut to| to.flush()).map_err(OciError::at(root))
}

struct Writer<'a, W: Write> {
    layer: &'a LayerDigest,
    tar: Builder<W>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// PAX records.
type Records = Vec<(String, Vec<u8>)>;

impl<W: Write> Writer<'_, W> {
    fn dir(&mut self, path: &[u8], dir: &OwnedFd, stat: &Stat, depth: usize) -> Result<(), OciError> {
        if depth > MAX_DEPTH {
            return Err(self.not_portable(path, "is more than 200 directories deep"));
        }
        let fail = |error: Errno| self.failed(path, error);
        let records = self.records(path, dir, b".", stat)?;
        let is_opaque = is_opaque(dir).map_err(fail)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_bytes().to_vec());
            }
        }
        names.sort_unstable();
        let shown = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        self.entry(EntryType::Directory, &shown, b"", stat, records, 0, io::empty())?;
        if is_opaque {
            let plain = below(path, b".wh..wh..opq");
            self.entry(EntryType::Regular, &plain, b"", &of_nobody(stat), Vec::new(), 0, io::empty())?;
        }
        for name in names {
            let path = below(path, &name);
            let stat =
                statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| self.failed(&path, error))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let next = open_dir(dir, &*name).map_err(|error| self.failed(&path, error))?;
                self.dir(&path, &next, &stat, depth + 1)?;
            } else {
                self.file(&path, dir, &name, &stat)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], dir: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), OciError> {
        let mut records = self.records(path, dir, name, stat)?;
        if is_whiteout(stat) {
            let marked = [b".wh.", name].concat();
            if marked.len() > MAX_PART {
                return Err(self.not_portable(path, "has a name too long for a whiteout"));
            }
            let path = [&path[..path.len() - name.len()], &marked].concat();
            return self.entry(EntryType::Regular, &path, b"", stat, records, 0, io::empty());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                records.retain(|(key, _)| key == LITERAL);
                return self.entry(EntryType::Link, path, &first, stat, records, 0, io::empty());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.regular(path, dir, name, records),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(|error| self.failed(path, error))?;
                let target = target.to_bytes();
                return self.entry(EntryType::Symlink, path, target, stat, records, 0, io::empty());
            }
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Socket => {
                records.push((SOCKET.to_owned(), b"1".to_vec()));
                EntryType::Fifo
            }
            _ => EntryType::Fifo,
        };
        self.entry(kind, path, b"", stat, records, 0, io::empty())
    }

    fn regular(&mut self, path: &[u8], dir: &OwnedFd, name: &[u8], records: Records) -> Result<(), OciError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
        let file = openat(dir, name, flags, Mode::empty()).map_err(|error| self.failed(path, error))?;
        let stat = fstat(&file).map_err(|error| self.failed(path, error))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut content = Counted { inner: File::from(file).take(size), count: 0 };
        self.entry(EntryType::Regular, path, b"", &stat, records, size, &mut content)?;
        if content.count == size { Ok(()) } else { Err(self.not_portable(path, "changed while it was read")) }
    }

    /// Returns the PAX records of an entry: values that the header has no room for, and attributes.
    fn records(&self, path: &[u8], dir: &OwnedFd, name: &[u8], stat: &Stat) -> Result<Records, OciError> {
        if u64::from(stat.st_uid.max(stat.st_gid)) > MAX_ID {
            return Err(self.not_portable(path, "has an owner beyond 65535"));
        }
        let mut records = Records::new();
        let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if last.starts_with(b".wh.") {
            records.push((LITERAL.to_owned(), b"1".to_vec()));
        }
        for (key, value) in xattrs_of(dir, name).map_err(|error| self.failed(path, error))? {
            if key == OPAQUE && value == b"y" && name == b"." {
                continue;
            }
            let is_kept = kept_xattr(&key, &value, true).is_some_and(|kept| kept == value);
            let (true, Ok(key)) = (is_kept, String::from_utf8(key)) else {
                let why = "has an extended attribute that templates do not carry (see make_portable)";
                return Err(self.not_portable(path, why));
            };
            records.push((format!("{XATTR}{key}"), value));
        }
        Ok(records)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a tar header")]
    fn entry(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: &[u8],
        stat: &Stat,
        mut records: Records,
        size: u64,
        content: impl Read,
    ) -> Result<(), OciError> {
        let mut header = Header::new_ustar();
        if !fill(&mut header.as_old_mut().name, name) {
            records.push(("path".to_owned(), name.to_owned()));
        }
        if !fill(&mut header.as_old_mut().linkname, target) {
            records.push(("linkpath".to_owned(), target.to_owned()));
        }
        match u64::try_from(stat.st_mtime) {
            Ok(seconds) if stat.st_mtime_nsec == 0 && seconds < 1 << 33 => header.set_mtime(seconds),
            _ => {
                header.set_mtime(0);
                records.push(("mtime".to_owned(), decimal(stat).into_bytes()));
            }
        }
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_size(size);
        let is_device = matches!(kind, EntryType::Char | EntryType::Block);
        let (major, minor) = if is_device { (major(stat.st_rdev), minor(stat.st_rdev)) } else { (0, 0) };
        let numbers = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
        numbers.map_err(|error| self.failed(name, error))?;
        header.set_cksum();
        records.sort_unstable();
        let pairs = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        let written = if records.is_empty() { Ok(()) } else { self.tar.append_pax_extensions(pairs) };
        written.and_then(|()| self.tar.append(&header, content)).map_err(|error| self.failed(name, error))
    }

    fn not_portable(&self, path: &[u8], why: &'static str) -> OciError {
        let entry = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
        OciError::NotPortable { layer: self.layer.to_string(), entry, why }
    }

    fn failed(&self, path: &[u8], error: impl Into<io::Error>) -> OciError {
        let path = &*String::from_utf8_lossy(&path[..path.len().min(200)]);
        OciError::at(&Path::new(self.layer.as_str()).join(path))(error)
    }
}

/// A reader that counts, since a file that shrinks would be padded silently.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Writes text to a header's field, truncated to its length; returns whether all of it fits.
fn fill(field: &mut [u8], text: &[u8]) -> bool {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
    count == text.len()
}

/// Returns the metadata of a whiteout: owner and mode do not matter, its time is the directory's.
fn of_nobody(stat: &Stat) -> Stat {
    let mut stat = *stat;
    (stat.st_uid, stat.st_gid, stat.st_mode) = (0, 0, 0);
    stat
}

/// Formats the modification time: seconds since 1970 with nanoseconds, possibly negative.
fn decimal(stat: &Stat) -> String {
    let total = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}
