//! Archives on disk: a directory, a tar, or a compressed tar, as a set of named files.
//! A tar is scanned once; content is then read from its position. Names and links in it are data, never paths of the host.
//! `image` and `template` interpret the files.

pub(crate) mod image;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use layers::{LayerStore, Staging};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use crate::OciError;
use crate::budget::{Budget, Metered};
use crate::compression::decompressed;
use crate::digest::{Digest, HashReader};
use crate::media::{Descriptor, MAX_DOCUMENT};
use crate::tarball::{Kind, TarReader};
use crate::unpack::lower::open_dir;

/// Maximum number of files in an archive.
const MAX_FILES: usize = 100_000;
/// Maximum length of a name and its link target, bytes.
const MAX_NAMES: usize = 4096;
/// Maximum number of links from a name to its file.
const MAX_LINKS: usize = 8;

/// An archive's files by name.
pub(crate) struct Archive {
    path: PathBuf,
    form: Form,
}

/// A file's content and its length in bytes.
pub(crate) type Content<'a> = (Box<dyn Read + 'a>, u64);

enum Form {
    Directory(std::os::fd::OwnedFd),
    Tar {
        file: File,
        files: HashMap<Vec<u8>, Item>,
        /// The directory with the uncompressed file, if the archive was compressed.
        _plain: Option<Staging>,
    },
}

enum Item {
    /// Position and length in the tar, bytes.
    File { offset: u64, size: u64 },
    /// A link to another name in the archive.
    Link(Vec<u8>),
}

impl Archive {
    /// Opens an archive. A compressed one is unpacked to a staging directory of `store`, within `budget`.
    pub(crate) fn open(path: &Path, store: &LayerStore, budget: &Budget) -> Result<Self, OciError> {
        let file = File::open(path).map_err(OciError::at(path))?;
        if file.metadata().map_err(OciError::at(path))?.is_dir() {
            let dir = open_dir(CWD, path).map_err(OciError::at(path))?;
            return Ok(Self { path: path.to_owned(), form: Form::Directory(dir) });
        }
        let (file, plain) = if is_compressed(&file) {
            let staging = store.stage()?;
            let plain = staging.path();
            let mut to = File::create_new(&plain).map_err(OciError::at(&plain))?;
            let mut from = Metered { inner: decompressed(&file)?, budget };
            io::copy(&mut from, &mut to)
                .map_err(|error| of_archive(path, crate::tarball::unreadable(error)))?;
            (File::open(&plain).map_err(OciError::at(&plain))?, Some(staging))
        } else {
            (file, None)
        };
        let files = scan(&file).map_err(|error| of_archive(path, error))?;
        Ok(Self { path: path.to_owned(), form: Form::Tar { file, files, _plain: plain } })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file; returns its content and length, or `None` if there is no such file.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Content<'_>>, OciError> {
        match &self.form {
            Form::Directory(dir) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = match openat2(dir, name, flags, Mode::empty(), resolve) {
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    answer => answer.map_err(OciError::at(&self.path.join(name)))?,
                };
                let stat = fstat(&file).map_err(OciError::at(&self.path.join(name)))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(self.malformed(&format!("{name} is no file")));
                }
                Ok(Some((Box::new(File::from(file)), u64::try_from(stat.st_size).unwrap_or(0))))
            }
            Form::Tar { file, files, .. } => {
                let mut name = clean(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match files.get(&name) {
                        None => return Ok(None),
                        Some(Item::Link(target)) => name.clone_from(target),
                        Some(Item::File { offset, size }) => {
                            let piece = Piece { file, next: *offset, left: *size };
                            return Ok(Some((Box::new(BufReader::with_capacity(128 << 10, piece)), *size)));
                        }
                    }
                }
                Err(self.malformed("its links lead in circles"))
            }
        }
    }

    /// Reads a small file.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, OciError> {
        let Some((content, size)) = self.file(name)? else { return Ok(None) };
        if size > MAX_DOCUMENT {
            return Err(self.malformed(&format!("{name} is longer than 8 MiB")));
        }
        let mut text = Vec::new();
        content.take(MAX_DOCUMENT).read_to_end(&mut text).map_err(OciError::at(&self.path))?;
        Ok(Some(text))
    }

    /// Opens a blob of an OCI layout, unverified.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Content<'_>, OciError> {
        let blob = self.file(&blob_name(digest))?;
        blob.ok_or_else(|| self.malformed(&format!("it lacks the blob {digest}")))
    }

    /// Reads and verifies a small blob.
    pub(crate) fn blob_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        if descriptor.size > MAX_DOCUMENT {
            return Err(self.malformed(&format!("blob {} is longer than 8 MiB", descriptor.digest)));
        }
        self.verify(descriptor)?;
        let mut text = Vec::new();
        self.blob(&descriptor.digest)?.0.read_to_end(&mut text).map_err(OciError::at(&self.path))?;
        Ok(text)
    }

    /// Checks that a blob has the length and digest of its descriptor.
    pub(crate) fn verify(&self, descriptor: &Descriptor) -> Result<(), OciError> {
        let (content, size) = self.blob(&descriptor.digest)?;
        let what = format!("blob {} in {}", descriptor.digest, self.path.display());
        if size != descriptor.size {
            return Err(OciError::Length { what, expected: descriptor.size, found: size });
        }
        let mut content = HashReader::new(content);
        io::copy(&mut content, &mut io::sink()).map_err(|error| self.unreadable(error))?;
        let found = content.finish();
        if found == descriptor.digest {
            return Ok(());
        }
        Err(OciError::Damaged { what, expected: descriptor.digest.to_string(), found: found.to_string() })
    }

    pub(crate) fn malformed(&self, why: &str) -> OciError {
        OciError::malformed(self.path.display().to_string(), &why)
    }

    fn unreadable(&self, error: io::Error) -> OciError {
        of_archive(&self.path, crate::tarball::unreadable(error))
    }
}

/// Returns the name of a blob's file in an OCI layout.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Adds the archive's path to an error without one.
fn of_archive(path: &Path, error: OciError) -> OciError {
    match error {
        OciError::Malformed { why, .. } => OciError::Malformed { what: path.display().to_string(), why },
        other => other,
    }
}

fn is_compressed(file: &File) -> bool {
    let mut start = [0; 4];
    file.read_exact_at(&mut start, 0).is_ok()
        && (start[..2] == [0x1f, 0x8b] || start == [0x28, 0xb5, 0x2f, 0xfd])
}

fn scan(file: &File) -> Result<HashMap<Vec<u8>, Item>, OciError> {
    let mut files = HashMap::new();
    let mut tar = TarReader::new(BufReader::with_capacity(64 << 10, file));
    while let Some(entry) = tar.next()? {
        let item = match entry.kind {
            Kind::File if entry.segments.is_none() => Item::File { offset: tar.position(), size: entry.size },
            Kind::Link => Item::Link(clean(&entry.target)),
            // Relative to the directory of the link.
            Kind::Symlink => {
                let dir = entry.name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                Item::Link(clean(&[&entry.name[..dir], b"/", &entry.target].concat()))
            }
            _ => continue,
        };
        if files.len() == MAX_FILES || entry.name.len() + entry.target.len() > MAX_NAMES {
            let why = "it has more than 100,000 files, or a name longer than 4096 bytes";
            return Err(OciError::malformed("the archive", &why));
        }
        files.insert(clean(&entry.name), item);
        tar.seek_over()?;
    }
    Ok(files)
}

/// Normalises a name in the archive: without `.`, `..` and repeated slashes.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

impl<R: Read + Seek> TarReader<R> {
    /// Skips the entry's content without reading it.
    fn seek_over(&mut self) -> Result<(), OciError> {
        let left = self.take_left();
        let distance = i64::try_from(left)
            .map_err(|_| OciError::malformed("the archive", &"a file in it is impossibly long"))?;
        self.inner_mut().seek(SeekFrom::Current(distance)).map_err(crate::tarball::unreadable)?;
        Ok(())
    }
}

/// A reader of a part of a file; several can be read at a time.
struct Piece<'a> {
    file: &'a File,
    next: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..most], self.next)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.next += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn names_in_archives_are_normalised() {
        assert_eq!(clean(b"./a//b/../c"), b"a/c");
        assert_eq!(clean(b"a/../../../b"), b"b");
        assert_eq!(clean(b"/"), b"");
    }
}
