//! The pages of a machine's memory that are its own, read batch after batch.
//! What is its own the kernel knows: pages that are present or swapped out and are no file's.
//! A guest decides how they are scattered: what is held of them here has bounds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sys::{MAX_PIECES, read_memory_of};

use super::{PAGE, Region, index};

/// Bits of `/proc/<pid>/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Bytes in a batch at most.
pub(super) const MAX_BATCH_BYTES: usize = 512 << 10;
/// Entries of the page map that are looked at together.
const WINDOW: u64 = 8192;

/// Pages next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRun {
    address: u64,
    /// In the image.
    offset: u64,
    length: usize,
}

impl PageRun {
    /// Address and place in the image of what comes behind it.
    fn end(&self) -> (u64, u64) {
        (self.address + self.length as u64, self.offset + self.length as u64)
    }
}

/// Some pages and what is in them.
#[derive(Debug, Default)]
pub(super) struct PageBatch {
    runs: Vec<PageRun>,
    /// Of all of them.
    length: usize,
    bytes: Vec<u8>,
    /// Where in `bytes` they begin: at a page. Processors copy to a place that is, within its page, a few bytes after the one they copy from, at
    /// a third of their speed, and large allocations begin 16 bytes after a page.
    start: usize,
}

impl PageBatch {
    /// The runs of pages in it: where each is in the image, and its content.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = self.bytes();
        self.runs.iter().map(move |run| {
            let (bytes, others) = rest.split_at(run.length);
            rest = others;
            (run.offset, bytes)
        })
    }

    /// Their content, run after run.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.length).unwrap_or_default()
    }

    /// Where in the image the first of them begins and the last one ends.
    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        let first = self.runs.iter().map(|run| run.offset).min()?;
        let last = self.runs.iter().map(|run| run.end().1).max()?;
        Some((first, last))
    }

    /// For other pages, in the same memory.
    fn clear(&mut self) {
        self.runs.clear();
        self.length = 0;
    }

    fn push(&mut self, address: u64, offset: u64) {
        self.length += index(PAGE);
        match self.runs.last_mut() {
            // In both: whoever has taken QEMU over maps what it likes next to each other.
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

/// Reads what is process `pid`'s own in these regions and gives it to `take`, batch after batch.
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
    fn pages_are_one_run_only_where_they_are_in_the_image_too() {
        let mut batch = PageBatch::default();
        for (address, offset) in [(10, 5), (11, 6), (12, 1), (20, 2)] {
            batch.push(address * PAGE, offset * PAGE);
        }
        let lengths: Vec<usize> = batch.runs.iter().map(|run| run.length / index(PAGE)).collect();
        assert_eq!((lengths, batch.length), (vec![2, 1, 1], 4 * index(PAGE)));
        assert_eq!(batch.bounds(), Some((PAGE, 7 * PAGE)));
    }
}
