//! What unpacking may cost: bytes and entries, counted while they come, so that a bomb never fills the disk.
//! One budget serves all layers of an image.
//! Also where unpacking learns that nobody waits for it any more.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::OciError;

/// What an image or template may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed, all layers together, bytes.
    pub size: u64,
    /// Files, directories and links, all layers together.
    pub entries: u64,
}

impl Default for Limits {
    /// 25,000 MiB, as E2B has it, and four million entries.
    fn default() -> Self {
        Self { size: 25_000 << 20, entries: 4_000_000 }
    }
}

/// What a directory costs on disk at least, bytes, however little an archive says of it.
pub(crate) const DIR: u64 = 4096;

/// What is left of the limits.
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

    /// Bytes counted so far.
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

    /// For a directory that no entry of an archive stands for.
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

/// Refuses to read more than the limit.
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
