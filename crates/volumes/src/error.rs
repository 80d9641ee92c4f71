//! [`VolumeError`]: why an operation on a volume failed.

use std::io;

use layers::LayerError;
use rustix::io::Errno;

/// Why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The volume has been deleted.
    #[error("Volume not found")]
    NoVolume,
    /// There is nothing at the path.
    #[error("path not found")]
    NotFound,
    /// There is something at the path already.
    #[error("path already exists")]
    Exists,
    /// A part of the path, or the path, is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The path is a directory, or anything else than a file.
    #[error("not a file")]
    NotFile,
    /// The path, or another value, is not valid.
    #[error("{0}")]
    Invalid(String),
    /// Directories on the path are renamed again and again, or a program has a lease on the file.
    #[error("the path is changed or held by a program; try again")]
    Busy,
    /// A removal took too long.
    #[error("not everything could be removed in time; end what adds files there, and try again")]
    Unfinished,
    /// The volume or the disk is full.
    #[error("no space left in the volume")]
    Full,
    /// The volume's trees cannot be used.
    #[error(transparent)]
    Trees(#[from] LayerError),
    /// The disk failed otherwise.
    #[error("the volume could not be read or written: {0}")]
    Io(io::Error),
}

impl From<Errno> for VolumeError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::STALE => Self::NotFound,
            Errno::EXIST | Errno::NOTEMPTY => Self::Exists,
            Errno::NOTDIR => Self::NotDirectory,
            Errno::CANCELED => Self::Unfinished,
            Errno::ISDIR | Errno::NXIO | Errno::NODEV => Self::NotFile,
            Errno::NOSPC | Errno::DQUOT => Self::Full,
            Errno::ROFS => Self::Invalid("the volume is read-only".into()),
            Errno::LOOP => Self::Invalid("the path has too many symbolic links".into()),
            Errno::NAMETOOLONG => Self::Invalid("the path is too long".into()),
            error => Self::Io(error.into()),
        }
    }
}

impl From<io::Error> for VolumeError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self::Io(error),
        }
    }
}
