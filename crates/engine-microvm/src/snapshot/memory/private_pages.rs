//! Reads the private pages of a VM's memory in batches: the pages that were changed since QEMU
//! mapped the memory image.
//!
//! The kernel knows them: they are present or swapped out, and do not belong to a file. A guest
//! decides how its pages are scattered, so the memory used here for them is bounded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sys::{MAX_PIECES, read_memory_of};

use super::{PAGE, Region, index};

/// Bits of `/proc/<pid>/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Maximum number of bytes in a batch.
pub(super) const MAX_BATCH_BYTES: usize = 512 << 10;
/// Number of page map entries that are read together.
const WINDOW: u64 = 8192;

/// Pages that are adjacent both in memory and in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRun {
    address: u64,
    /// Offset in the image.
    offset: u64,
    length: usize,
}

impl PageRun {
    /// Address and offset in the image of the page after the run.
    fn end(&self) -> (u64, u64) {
        (self.address + self.length as u64, self.offset + self.length as u64)
    }
}

/// Some pages and their content.
#[derive(Debug, Default)]
pub(super) struct PageBatch {
    runs: Vec<PageRun>,
    /// Length of all runs, bytes.
    length: usize,
    bytes: Vec<u8>,
    /// Offset of the content in `bytes`: a page boundary. Processors copy at a third of their speed
    /// to an address that is, within its page, a few bytes after the source address, and large
    /// allocations begin 16 bytes after a page boundary.
    start: usize,
}

impl PageBatch {
    /// The runs: offset in the image and content of each.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = self.bytes();
        self.runs.iter().map(move |run| {
            let (bytes, others) = rest.split_at(run.length);
            rest = others;
            (run.offset, bytes)
        })
    }

    /// The content of all runs, one after another.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.length).unwrap_or_default()
    }

    /// Offsets in the image where the first run begins and the last one ends.
    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        let first = self.runs.iter().map(|run| run.offset).min()?;
        let last = self.runs.iter().map(|run| run.end().1).max()?;
        Some((first, last))
    }

    /// Removes the pages but keeps the allocation.
    fn clear(&mut self) {
        self.runs.clear();
        self.length = 0;
    }

    fn push(&mut self, address: u64, offset: u64) {
        self.length += index(PAGE);
        match self.runs.last_mut() {
            // Adjacent in both: code that has taken over QEMU can map pages next to each other as
            // it likes.
            Some(last) if last.end() == (address, offset) => last.length += index(PAGE),
            _ => self.runs.push(PageRun { address, offset, length: index(PAGE) }),
        }
    }

    fn read(&mut self, pid: i32) -> io::Result<()> {
        let pieces: Vec<(u64, usize)> = self.runs.iter().map(|run| (run.address, run.length)).collect();
        if self.bytes.is_empty() {
            self.bytes.resize(MAX_BATCH_BYTES + index(PAGE), 0);
            self.start = self.bytes.as_ptr().align_offset(index(PAGE));
        }
        read_memory_of(pid, &pieces, &mut self.bytes[self.start..][..self.length])
    }
}

/// Reads the private pages of process `pid` in these regions and calls `take` with each batch.
///
/// # Errors
/// The process has ended; or an error of `take`.
pub(super) fn read(
    pid: i32,
    regions: &[Region],
    mut take: impl FnMut(&PageBatch) -> io::Result<()>,
) -> io::Result<()> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut batch = PageBatch::default();
    let mut entries = Vec::new();
    for region in regions {
        let mut at = region.start;
        while at < region.end {
            let count = ((region.end - at) / PAGE).min(WINDOW);
            entries.resize(index(count * 8), 0);
            pagemap.read_exact_at(&mut entries, at / PAGE * 8)?;
            for (entry, address) in entries.chunks_exact(8).zip((at..).step_by(index(PAGE))) {
                let bits = u64::from_ne_bytes(entry.try_into().expect("chunks of eight"));
                if bits & (PRESENT | SWAPPED) == 0 || bits & OF_FILE != 0 {
                    continue;
                }
                batch.push(address, region.offset + (address - region.start));
                if batch.runs.len() == MAX_PIECES || batch.length >= MAX_BATCH_BYTES {
                    batch.read(pid)?;
                    take(&batch)?;
                    batch.clear();
                }
            }
            at += count * PAGE;
        }
    }
    if batch.runs.is_empty() {
        return Ok(());
    }
    batch.read(pid)?;
    take(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_adjacent_in_memory_and_in_the_image() {
        let mut batch = PageBatch::default();
        for (address, offset) in [(10, 5), (11, 6), (12, 1), (20, 2)] {
            batch.push(address * PAGE, offset * PAGE);
        }
        let lengths: Vec<usize> = batch.runs.iter().map(|run| run.length / index(PAGE)).collect();
        assert_eq!((lengths, batch.length), (vec![2, 1, 1], 4 * index(PAGE)));
        assert_eq!(batch.bounds(), Some((PAGE, 7 * PAGE)));
    }
}
