//! Reading and writing files. A file is written without a name and gets its name when it is complete and on the disk: nobody sees a
//! part of it, and of an upload that breaks off nothing is left, whatever ends the server.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, linkat, open, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::entry::Entry;
use super::path::VolumePath;
use super::{Attributes, CreateOptions, DEFAULT_FILE_MODE, VolumeRoot, apply, entry_at, with_defaults};
use crate::error::VolumeError;
use crate::trees::path_of;

/// A file that is open for reading.
#[derive(Debug)]
pub struct ReadFile {
    /// The file, at its beginning.
    pub file: File,
    /// Its size, bytes.
    pub size: u64,
}

/// A file that is being written and has no name yet. Dropped, it is gone.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    parent: OwnedFd,
    name: CString,
    path: VolumePath,
    attributes: Attributes,
    replaces: bool,
}

impl VolumeRoot {
    /// Opens a file for reading; links are followed within the volume.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::NotFile`] if it is anything else, [`VolumeError::Busy`] if a program has a lease on it.
    pub fn read(&self, path: &VolumePath) -> Result<ReadFile, VolumeError> {
        // As a path first: opening a pipe would wait for a writer, and opening a device may do anything.
        let found = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC)?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(VolumeError::NotFile);
        }
        // Whoever has a lease on it must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(path_of(found.as_fd()), flags, Mode::empty()) {
            Err(Errno::AGAIN) => return Err(VolumeError::Busy),
            opened => File::from(opened?),
        };
        let size = file.metadata()?.len();
        Ok(ReadFile { file, size })
    }

    /// Begins to write a file. With `force`, missing parents are created and a file that exists is replaced.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::NotFound`] for a missing parent, [`VolumeError::NotDirectory`],
    /// [`VolumeError::NotFile`] if a directory is in its place.
    pub fn write(&self, path: &VolumePath, options: CreateOptions) -> Result<NewFile, VolumeError> {
        let Some(name) = path.name() else { return Err(VolumeError::NotFile) };
        let parent = self.open_parent(path, options)?;
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if !options.force => return Err(VolumeError::Exists),
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                return Err(VolumeError::NotFile);
            }
            Ok(_) => {}
        }
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(openat(&parent, c".", flags, Mode::from_raw_mode(0o600))?);
        Ok(NewFile {
            file,
            parent,
            name: name.to_owned(),
            path: path.clone(),
            attributes: with_defaults(options.attributes, DEFAULT_FILE_MODE),
            replaces: options.force,
        })
    }
}

impl NewFile {
    /// The file, to write the content to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its owner, mode and name, and returns it. It survives a power failure then. Blocks.
    ///
    /// # Errors
    /// [`VolumeError::Exists`] if another one has taken the name meanwhile, [`VolumeError::Full`].
    pub fn finish(self) -> Result<Entry, VolumeError> {
        apply(self.file.as_fd(), self.attributes)?;
        self.file.sync_all()?;
        if self.replaces {
            let temporary =
                CString::new(format!(".cofferdam-{}", ids::random_hex::<8>())).expect("no zero byte");
            link(self.file.as_fd(), &self.parent, &temporary)?;
            renameat(&self.parent, &temporary, &self.parent, &self.name).map_err(|error| {
                let _ = unlinkat(&self.parent, &temporary, AtFlags::empty());
                VolumeError::from(error)
            })?;
        } else {
            link(self.file.as_fd(), &self.parent, &self.name)?;
        }
        // The name as well.
        self.file.sync_all()?;
        rustix::fs::fsync(&self.parent)?;
        entry_at(self.parent.as_fd(), &self.name, &self.path)
    }
}

/// Gives a file without a name a free one.
fn link(file: BorrowedFd<'_>, dir: &OwnedFd, name: &CStr) -> Result<(), VolumeError> {
    Ok(linkat(CWD, path_of(file), dir, name, AtFlags::SYMLINK_FOLLOW)?)
}
