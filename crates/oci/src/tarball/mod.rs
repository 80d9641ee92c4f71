//! Reads tar archives entry by entry: ustar, GNU and PAX, with long names, attributes and sparse files.
//! Archives are untrusted: every length is checked before memory is allocated. Names are returned as they are in the archive; `unpack`
//! checks them.

mod extended;
mod sparse;

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::OciError;
use extended::Extended;
pub(crate) use extended::{LITERAL, SOCKET, XATTR};
pub(crate) use sparse::Segment;

const BLOCK: usize = 512;
/// Maximum size of a header's extension, bytes: names, and attributes of 64 KiB each.
const MAX_EXTENSION: u64 = 1 << 20;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// Another name of a file.
    Link,
    Fifo,
    /// Character or block device.
    Device,
}

/// The header of an entry.
#[derive(Debug)]
pub(crate) struct TarEntry {
    pub(crate) kind: Kind,
    pub(crate) name: Vec<u8>,
    /// The target of a link.
    pub(crate) target: Vec<u8>,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u32,
    pub(crate) user: u64,
    pub(crate) group: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: (i64, u32),
    /// Size of the file, bytes.
    pub(crate) size: u64,
    /// The segments of the stored content, for a sparse file.
    pub(crate) segments: Option<Vec<Segment>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A device's major and minor number.
    pub(crate) device: (u32, u32),
    /// Whether a device is a block device.
    pub(crate) is_block: bool,
    /// Whether the name is literal, by our own record.
    pub(crate) is_literal: bool,
    /// Whether the pipe represents a socket, by our own record.
    pub(crate) is_socket: bool,
}

/// Reads an archive. Between two calls of [`TarReader::next`] it is a reader of the entry's stored content.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Number of bytes of stored content not read yet.
    left: u64,
    /// Number of zeros after it.
    padding: u64,
    position: u64,
    is_over: bool,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, position: 0, is_over: false }
    }

    /// Returns the number of bytes of the archive read so far; after [`TarReader::next`], where the entry's stored content begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the length of the entry's unread content, which the caller skips in another way than reading.
    pub(crate) fn take_left(&mut self) -> u64 {
        let left = std::mem::take(&mut self.left);
        self.position += left;
        left
    }

    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Reads the next entry, skipping unread content of the previous one; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>, OciError> {
        let mut extended = Extended::default();
        loop {
            self.pass_over()?;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            let size = header.entry_size().map_err(|_| broken("a length is no number"))?;
            self.set_content(size);
            match header.entry_type() {
                EntryType::GNULongName => extended.name = Some(self.extension(trim)?),
                EntryType::GNULongLink => extended.target = Some(self.extension(trim)?),
                EntryType::XHeader => extended.add_records(&self.extension(|content| content)?)?,
                // Records about the whole archive, such as the commit it was made from.
                EntryType::XGlobalHeader => {}
                kind => return self.entry(header, kind, extended).map(Some),
            }
        }
    }

    /// Reads to the end of the stream, beyond the end of the archive.
    pub(crate) fn drain(&mut self) -> Result<(), OciError> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop).map_err(unreadable)
    }

    fn entry(&mut self, header: &Header, kind: EntryType, extended: Extended) -> Result<TarEntry, OciError> {
        let name = extended.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let target =
            extended.target.unwrap_or_else(|| header.link_name_bytes().map(Into::into).unwrap_or_default());
        let kind = match kind {
            // Old archives have no type for directories.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Link,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            _ => {
                return Err(refused(
                    &name,
                    "is of a kind that is none of files, directories, links and pipes",
                ));
            }
        };
        if let Some(size) = extended.size {
            self.set_content(size);
        }
        if kind != Kind::File {
            // Some writers give links the length of their target; no content follows.
            self.set_content(0);
        }
        let number = |field: io::Result<u64>| field.map_err(|_| broken("an owner or time is no number"));
        let mut entry = TarEntry {
            kind,
            name,
            target,
            mode: header.mode().map_err(|_| broken("a mode is no number"))? & 0o7777,
            user: extended.user.map_or_else(|| number(header.uid()), Ok)?,
            group: extended.group.map_or_else(|| number(header.gid()), Ok)?,
            modified: match extended.modified {
                Some(time) => time,
                None => (i64::try_from(number(header.mtime())?).unwrap_or(0), 0),
            },
            size: self.left,
            segments: None,
            xattrs: extended.xattrs,
            device: match kind {
                Kind::Device => (device(header.device_major())?, device(header.device_minor())?),
                _ => (0, 0),
            },
            is_block: header.entry_type() == EntryType::Block,
            is_literal: extended.is_literal,
            is_socket: extended.is_socket,
        };
        if kind != Kind::File {
            return Ok(entry);
        }
        let sparse = if header.entry_type() == EntryType::GNUSparse {
            Some(sparse::gnu(header, || self.block())?)
        } else {
            extended.sparse.layout(self)?
        };
        if let Some(sparse) = sparse {
            entry.segments = Some(sparse::checked(&entry.name, sparse.segments, sparse.size, self.left)?);
            entry.size = sparse.size;
            if let Some(name) = sparse.name {
                entry.name = name;
            }
        }
        Ok(entry)
    }

    fn set_content(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// Reads the next header; `None` at the archive's end. A missing end marker is accepted where an entry could begin.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, OciError> {
        if self.is_over {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let count = self.fill(&mut block)?;
        if count == 0 || block == [0; BLOCK] {
            self.is_over = true;
            return Ok(None);
        }
        if count < BLOCK {
            return Err(broken("it ends in the middle of a header"));
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
            .sum();
        match Header::from_byte_slice(&block).cksum() {
            Ok(noted) if noted == sum => Ok(Some(block)),
            _ => Err(broken("a header's checksum is wrong")),
        }
    }

    /// Reads a block that belongs to the header.
    fn block(&mut self) -> Result<[u8; BLOCK], OciError> {
        let mut block = [0; BLOCK];
        if self.fill(&mut block)? < BLOCK {
            return Err(broken("it ends in the middle of a header"));
        }
        Ok(block)
    }

    fn fill(&mut self, block: &mut [u8]) -> Result<usize, OciError> {
        let mut count = 0;
        while count < block.len() {
            match self.inner.read(&mut block[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        self.position += count as u64;
        Ok(count)
    }

    /// Reads this entry's content, which describes the next entry.
    fn extension(&mut self, finish: fn(Vec<u8>) -> Vec<u8>) -> Result<Vec<u8>, OciError> {
        if self.left > MAX_EXTENSION {
            return Err(broken("a header's extension is longer than 1 MiB"));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(unreadable)?;
        Ok(finish(content))
    }

    fn pass_over(&mut self) -> Result<(), OciError> {
        io::copy(self, &mut io::sink()).map_err(unreadable)?;
        let mut padding = [0; BLOCK];
        let count = usize::try_from(self.padding).unwrap_or(BLOCK);
        self.padding = 0;
        // Missing padding at the very end is harmless.
        self.fill(&mut padding[..count]).map(drop)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

/// Removes the zero byte at the end of a GNU name.
fn trim(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn device(number: io::Result<Option<u32>>) -> Result<u32, OciError> {
    number.map(Option::unwrap_or_default).map_err(|_| broken("a device's number is none"))
}

pub(crate) fn broken(why: &str) -> OciError {
    OciError::malformed("the archive", &why)
}

pub(crate) fn refused(entry: &[u8], why: &'static str) -> OciError {
    let shown = &entry[..entry.len().min(200)];
    OciError::Entry { entry: String::from_utf8_lossy(shown).into_owned(), why }
}

/// Converts an error while reading: a wrapped error of ours, or one of the decompressor.
pub(crate) fn unreadable(error: io::Error) -> OciError {
    match OciError::from_io(error) {
        Ok(ours) => ours,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => broken("it ends too early"),
        Err(error) => OciError::malformed("the archive", &error),
    }
}
