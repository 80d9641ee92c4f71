//! Limits of unpacking: bytes and entries are counted while they are read, so that a decompression bomb cannot fill the disk.
//! One budget applies to all layers of an image. It also carries the cancellation flag.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::OciError;

/// Maximum size of an image or template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed size of all layers together, bytes.
    pub size: u64,
    /// Number of files, directories and links of all layers together.
    pub entries: u64,
}

impl Default for Limits {
    /// 25,000 MiB, as in E2B, and four million entries.
    fn default() -> Self {
        Self { size: 25_000 << 20, entries: 4_000_000 }
    }
}

/// Minimum size of a directory on disk, bytes.
pub(crate) const DIR: u64 = 4096;

/// What is left of the limits, and whether unpacking was cancelled.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    size: Cell<u64>,
    entries: Cell<u64>,
    cancelled: Arc<AtomicBool>,
}

impl Budget {
    pub(crate) fn new(limits: Limits, cancelled: Arc<AtomicBool>) -> Self {
        Self { limits, size: Cell::new(0), entries: Cell::new(0), cancelled }
    }

    /// Returns the number of bytes counted so far.
    pub(crate) fn size(&self) -> u64 {
        self.size.get()
    }

    pub(crate) fn add_bytes(&self, count: u64) -> Result<(), OciError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(OciError::Cancelled);
        }
        self.size.set(self.size.get().saturating_add(count));
        if self.size.get() > self.limits.size {
            return Err(OciError::TooLarge { size: self.size.get(), limit: self.limits.size });
        }
        Ok(())
    }

    /// Counts a directory that no entry of the archive describes.
    pub(crate) fn add_dir(&self) -> Result<(), OciError> {
        self.add_entries(1)?;
        self.add_bytes(DIR)
    }

    pub(crate) fn add_entries(&self, count: u64) -> Result<(), OciError> {
        self.entries.set(self.entries.get().saturating_add(count));
        if self.entries.get() > self.limits.entries {
            return Err(OciError::TooManyEntries(self.limits.entries));
        }
        Ok(())
    }
}

/// A reader that fails when its budget is exceeded.
pub(crate) struct Metered<'a, R> {
    pub(crate) inner: R,
    pub(crate) budget: &'a Budget,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.add_bytes(count as u64).map_err(OciError::into_io)?;
        Ok(count)
    }
}
