//! [`Durability`]: whether a snapshot must survive a power failure.
//! Syncing to the disk takes most of the time of a small capture, and a snapshot that is restored at once and then discarded
//! does not need it. The caller of a capture chooses.

use std::fs::File;
use std::io;

/// Whether a snapshot must survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk when the capture returns.
    Durable,
    /// A power failure may take it: it is restored at once, and no record names it.
    Ephemeral,
}

impl Durability {
    /// Syncs a file or directory to the disk if the snapshot must be durable; otherwise does nothing.
    ///
    /// # Errors
    /// The sync failed.
    pub fn sync(self, file: &File) -> io::Result<()> {
        match self {
            Self::Durable => file.sync_all(),
            Self::Ephemeral => Ok(()),
        }
    }
}
