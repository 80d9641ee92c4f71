//! Creates a layer from the stream of an untrusted guest. Every step is relative to an open directory that was created here, names have
//! one component, nothing is followed or replaced, lengths are checked before memory is allocated, and the whole stream has limits.
//! Nothing is left of a stream that ends early.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fstat, ftruncate, linkat, lsetxattr, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::{
    MAGIC, MAX_NAME, MAX_PIECE, MAX_TARGET, MAX_XATTR, MAX_XATTR_BYTES, MAX_XATTRS, Meta, is_kept, tag,
};
use crate::LayerError;
use crate::copy_tree::entry_path;
use crate::trash::remove_tree;
use walk::{Id, check_depth, id_of, open_dir, open_parent};

/// Maximum user or group id in a sandbox. Others become [`NOBODY`].
const MAX_ID: u32 = 65_535;
const NOBODY: u32 = 65_534;

/// Limits of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Maximum size of all files and attributes, bytes. Holes count, as they are read when the layer is hashed or copied.
    pub bytes: u64,
    /// Maximum number of files, directories, links and whiteouts.
    pub entries: u64,
}

/// Creates the layer `target`, which must not exist, from a stream. Reads no further than the stream's end.
///
/// # Errors
/// The stream is truncated, malformed or exceeds the limits, or the disk is full; then nothing is left of the layer.
pub fn read_layer(from: impl Read, target: &Path, limits: StreamLimits) -> Result<(), LayerError> {
    let links = target.with_extension("links");
    let make = || -> io::Result<()> {
        [target, &links].into_iter().try_for_each(fs::create_dir)?;
        let here = open_dir(CWD, target)?;
        let links = open_dir(CWD, &links)?;
        let buffer = vec![0; MAX_PIECE];
        Reader { from: Input { from, left: limits }, here, above: Vec::new(), links, buffer }.all()
    };
    let made = make();
    let left = remove_tree(&links);
    made.and(left).map_err(|error| {
        let _ = remove_tree(target);
        LayerError::at(target)(error)
    })
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the layer's stream {why}"))
}

struct Reader<R> {
    from: Input<R>,
    /// The directory being filled.
    here: OwnedFd,
    /// Its parent directories, from the top.
    above: Vec<Id>,
    /// A directory beside the layer with a name for each file that has several.
    links: OwnedFd,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    fn all(mut self) -> io::Result<()> {
        if self.from.array()? != *MAGIC {
            return Err(refused("is not a layer, or of another version"));
        }
        let mut is_complete = false;
        loop {
            let tag = self.from.array::<1>()?[0];
            if is_complete {
                return if tag == tag::END { Ok(()) } else { Err(refused("continues after its end")) };
            }
            self.from.entry()?;
            match tag {
                tag::ENTER => self.enter()?,
                tag::LEAVE => is_complete = self.leave()?,
                tag::LINK => self.link()?,
                tag::FILE | tag::SYMLINK | tag::PIPE | tag::WHITEOUT => self.file(tag)?,
                _ => return Err(refused("has an unknown record")),
            }
        }
    }

    fn enter(&mut self) -> io::Result<()> {
        let name = self.from.name()?;
        check_depth(self.above.len() + 1)?;
        mkdirat(&self.here, &*name, Mode::from_raw_mode(0o700))?;
        let next = open_dir(&self.here, &*name)?;
        self.above.push(id_of(&fstat(&self.here)?));
        self.here = next;
        Ok(())
    }

    /// Returns whether the directory that is left is the root.
    fn leave(&mut self) -> io::Result<bool> {
        let meta = self.from.meta()?;
        self.set_metadata(b".", &meta, false)?;
        match self.above.pop() {
            Some(above) => self.here = open_parent(&self.here, above)?,
            None => return Ok(true),
        }
        Ok(false)
    }

    fn link(&mut self) -> io::Result<()> {
        let name = self.from.name()?;
        let number = u64::from_le_bytes(self.from.array()?);
        match linkat(&self.links, number.to_string(), &self.here, &*name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(refused("has a link to an unknown file")),
            answer => Ok(answer?),
        }
    }

    fn file(&mut self, tag: u8) -> io::Result<()> {
        let name = self.from.name()?;
        let number = if tag == tag::WHITEOUT { 0 } else { u64::from_le_bytes(self.from.array()?) };
        let meta = self.from.meta()?;
        match tag {
            tag::FILE => self.regular(&name)?,
            tag::SYMLINK => {
                let target = self.from.bytes16(MAX_TARGET)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(refused("has a symlink without a valid target"));
                }
                symlinkat(&*target, &self.here, &*name)?;
            }
            kind => {
                let kind = if kind == tag::PIPE { FileType::Fifo } else { FileType::CharacterDevice };
                mknodat(&self.here, &*name, kind, Mode::empty(), 0)?;
            }
        }
        self.set_metadata(&name, &meta, tag == tag::SYMLINK)?;
        if number == 0 {
            return Ok(());
        }
        match linkat(&self.here, &*name, &self.links, number.to_string(), AtFlags::empty()) {
            Err(Errno::EXIST) => Err(refused("has two files with one link number")),
            answer => Ok(answer?),
        }
    }

    fn regular(&mut self, name: &[u8]) -> io::Result<()> {
        let size = u64::from_le_bytes(self.from.array()?);
        self.from.spend(size)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.here, name, flags, Mode::from_raw_mode(0o600))?);
        ftruncate(&file, size)?;
        let mut written = 0;
        loop {
            let length = u32::from_le_bytes(self.from.array()?) as usize;
            if length == 0 {
                return Ok(());
            }
            let offset = u64::from_le_bytes(self.from.array()?);
            let end = offset.checked_add(length as u64);
            // Offsets must increase, so that nothing is written twice.
            if length > MAX_PIECE || offset < written || end.is_none_or(|end| end > size) {
                return Err(refused("has content beyond a file's end"));
            }
            let piece = &mut self.buffer[..length];
            self.from.from.read_exact(piece)?;
            file.write_all_at(piece, offset)?;
            written = offset + length as u64;
        }
    }

    /// Sets owner, mode, attributes and time of an entry that was just created; no other process can change it meanwhile.
    fn set_metadata(&self, name: &[u8], meta: &Meta, is_symlink: bool) -> io::Result<()> {
        let name = &*std::ffi::CString::new(name).map_err(io::Error::other)?;
        let id = |id: u32| if id > MAX_ID { NOBODY } else { id };
        let (user, group) = (Uid::from_raw(id(meta.user)), Gid::from_raw(id(meta.group)));
        chownat(&self.here, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_symlink {
            // After the owner: changing that clears mode bits.
            chmodat(&self.here, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
        }
        let path = entry_path(self.here.as_fd(), name);
        for (key, value) in meta.xattrs.iter().filter(|(key, value)| is_kept(key, value)) {
            match lsetxattr(&path, &**key, value, XattrFlags::empty()) {
                // Not supported on this kind of file or file system, or an invalid value.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) if !key.starts_with(b"trusted.") => {}
                answer => answer?,
            }
        }
        let (seconds, nanoseconds) = meta.modified;
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(&self.here, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// The stream, and what is left of its limits.
struct Input<R> {
    from: R,
    left: StreamLimits,
}

impl<R: Read> Input<R> {
    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        self.left.bytes =
            self.left.bytes.checked_sub(bytes).ok_or_else(|| refused("exceeds its size limit"))?;
        Ok(())
    }

    fn entry(&mut self) -> io::Result<()> {
        let left = self.left.entries.checked_sub(1);
        self.left.entries = left.ok_or_else(|| refused("exceeds its limit of files"))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.from.read_exact(&mut array)?;
        Ok(array)
    }

    fn bytes(&mut self, length: usize, most: usize) -> io::Result<Vec<u8>> {
        if length > most {
            return Err(refused("has something longer than the kernel allows"));
        }
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes16(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let length = u16::from_le_bytes(self.array()?);
        self.bytes(length.into(), most)
    }

    fn name(&mut self) -> io::Result<Vec<u8>> {
        let name = self.bytes16(MAX_NAME)?;
        if matches!(&*name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(refused("has an invalid name"));
        }
        Ok(name)
    }

    fn meta(&mut self) -> io::Result<Meta> {
        let mut number = || Ok::<u32, io::Error>(u32::from_le_bytes(self.array()?));
        let (mode, user, group) = (number()? & 0o7777, number()?, number()?);
        let seconds = i64::from_le_bytes(self.array()?);
        let nanoseconds = u32::from_le_bytes(self.array()?).min(999_999_999);
        let count = u16::from_le_bytes(self.array()?);
        if usize::from(count) > MAX_XATTRS {
            return Err(refused("has a file with too many attributes"));
        }
        let (mut xattrs, mut sum) = (Vec::new(), 0);
        for _ in 0..count {
            let name = self.bytes16(MAX_NAME)?;
            let length = u32::from_le_bytes(self.array()?) as usize;
            sum += name.len() + length;
            if sum > MAX_XATTR_BYTES {
                return Err(refused("has a file with too many attributes"));
            }
            self.spend(length.max(1) as u64)?;
            if name.contains(&0) {
                return Err(refused("has an attribute with an invalid name"));
            }
            xattrs.push((name, self.bytes(length, MAX_XATTR)?));
        }
        Ok(Meta { mode, user, group, modified: (seconds, nanoseconds), xattrs })
    }
}
