//! What a captured state must survive, and what that costs.
//! Waiting for a disk is most of what a small capture takes, and a state that is restored at once and then gone needs none of it.
//! Who captures says which it is; it is never guessed.

use std::fs::File;
use std::io;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// A loss of power.
    Durable,
    /// Nothing: it is restored at once, and nobody is told of it.
    Brief,
}

impl Lasting {
    /// Waits until what is in the file, or the directory, is on disk, if that is wanted.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn settle(self, file: &File) -> io::Result<()> {
        match self {
            Self::Durable => file.sync_all(),
            Self::Brief => Ok(()),
        }
    }
}
