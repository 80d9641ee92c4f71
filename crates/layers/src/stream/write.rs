//! Writes an overlay's upper directory as a stream. Runs in the guest, beside untrusted code: it must not fail because of that code's
//! files, but has nothing to protect from it. Sockets and device nodes are left out: they mean nothing outside the guest.
//! The tree must not change meanwhile.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, seek};
use rustix::io::Errno;

use super::{MAGIC, MAX_PIECE, is_kept, tag};
use crate::copy_tree::{entry_path, xattrs_of};
use walk::{Id, Visitor, changed, id_of, visit};

/// Writes the entries of the open directory `upper`, and its own metadata, without attributes that only its own overlay understands.
///
/// # Errors
/// The tree cannot be read or changes meanwhile, or the writer fails.
pub fn write_layer(upper: OwnedFd, to: impl Write) -> io::Result<()> {
    let mut writer = Writer { to, links: HashMap::new(), buffer: vec![0; MAX_PIECE] };
    writer.to.write_all(MAGIC)?;
    visit(upper, &mut writer)?;
    writer.to.write_all(&[tag::END])
}

struct Writer<W> {
    to: W,
    /// Link numbers of files with several names.
    links: HashMap<Id, u64>,
    buffer: Vec<u8>,
}

impl<W: Write> Visitor for Writer<W> {
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_whiteout =
            kind == FileType::CharacterDevice && (major(stat.st_rdev), minor(stat.st_rdev)) == (0, 0);
        if is_whiteout {
            // Overlayfs makes all whiteouts links of one file; here each is a file of its own.
            self.name(tag::WHITEOUT, name)?;
            return self.meta(dir, name, stat);
        }
        let kind = match kind {
            FileType::RegularFile => tag::FILE,
            FileType::Symlink => tag::SYMLINK,
            FileType::Fifo => tag::PIPE,
            _ => return Ok(()),
        };
        let mut number = 0;
        if stat.st_nlink > 1 {
            if let Some(number) = self.links.get(&id_of(stat)).copied() {
                self.name(tag::LINK, name)?;
                return self.to.write_all(&number.to_le_bytes());
            }
            number = self.links.len() as u64 + 1;
            self.links.insert(id_of(stat), number);
        }
        self.name(kind, name)?;
        self.to.write_all(&number.to_le_bytes())?;
        self.meta(dir, name, stat)?;
        match kind {
            tag::FILE => self.content(dir, name, stat),
            tag::SYMLINK => {
                let target = readlinkat(dir, name, Vec::new())?;
                self.bytes16(target.to_bytes())
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, name: &CStr) -> io::Result<()> {
        self.name(tag::ENTER, name)
    }

    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
        self.to.write_all(&[tag::LEAVE])?;
        self.meta(dir, c".", &fstat(dir)?)
    }
}

impl<W: Write> Writer<W> {
    fn name(&mut self, tag: u8, name: &CStr) -> io::Result<()> {
        self.to.write_all(&[tag])?;
        self.bytes16(name.to_bytes())
    }

    fn bytes16(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        self.to.write_all(&length.to_le_bytes())?;
        self.to.write_all(bytes)
    }

    fn meta(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        for number in [stat.st_mode & 0o7777, stat.st_uid, stat.st_gid] {
            self.to.write_all(&number.to_le_bytes())?;
        }
        self.to.write_all(&stat.st_mtime.to_le_bytes())?;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        self.to.write_all(&nanoseconds.to_le_bytes())?;
        let mut xattrs = xattrs_of(&entry_path(dir, name))?;
        xattrs.retain(|(name, value)| is_kept(name, value));
        xattrs.sort_unstable();
        let count = u16::try_from(xattrs.len()).map_err(io::Error::other)?;
        self.to.write_all(&count.to_le_bytes())?;
        for (name, value) in xattrs {
            self.bytes16(&name)?;
            let length = u32::try_from(value.len()).map_err(io::Error::other)?;
            self.to.write_all(&length.to_le_bytes())?;
            self.to.write_all(&value)?;
        }
        Ok(())
    }

    fn content(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(openat(dir, name, flags, Mode::empty())?);
        let opened = fstat(&file)?;
        if id_of(&opened) != id_of(stat) || opened.st_size != stat.st_size {
            return Err(changed());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.to.write_all(&size.to_le_bytes())?;
        let mut position = 0;
        while position < size {
            let start = match seek(&file, rustix::fs::SeekFrom::Data(position)) {
                // Only a hole follows.
                Err(Errno::NXIO) => break,
                answer => answer?,
            };
            let end = seek(&file, rustix::fs::SeekFrom::Hole(start))?.min(size);
            position = start;
            while position < end {
                let most = usize::try_from(end - position).unwrap_or(MAX_PIECE).min(MAX_PIECE);
                let count = file.read_at(&mut self.buffer[..most], position)?;
                if count == 0 {
                    return Err(changed());
                }
                let length = u32::try_from(count).expect("a piece has at most 256 KiB");
                self.to.write_all(&length.to_le_bytes())?;
                self.to.write_all(&position.to_le_bytes())?;
                self.to.write_all(&self.buffer[..count])?;
                position += count as u64;
            }
        }
        self.to.write_all(&0u32.to_le_bytes())
    }
}
