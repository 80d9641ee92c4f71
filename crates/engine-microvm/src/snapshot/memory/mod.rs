//! Memory images: a guest's memory as a file.
//!
//! QEMU maps an image privately, so the pages that the guest has changed since are private to the
//! QEMU process. A new image is a copy of the old one (with shared blocks where the file system
//! can) with those pages written over it. So every image is complete, and none depends on another.
//! A snapshot that must be durable is quicker written as a journal first.

mod image;
mod journal;
mod private_pages;
mod writeback;

use std::fs::{self, File};
use std::io;
use std::path::Path;

use engine::Durability;

use crate::vm::command_line::MEMORY_FILE;

pub(crate) use journal::replay;

const PAGE: u64 = 4096;

/// A range of the guest's memory in QEMU's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    /// Offset of the first byte in the image.
    offset: u64,
}

/// Writes the memory, `size` bytes, of the stopped VM run by process `pid` as a new image; returns
/// the bytes in its private pages. With `journal`, those pages are written to that and synced, and
/// the image is complete once the journal has been replayed.
///
/// # Errors
/// The process has ended, its memory is not mapped as expected, or the disk is full.
pub(crate) fn write_image(
    pid: i32,
    size: u64,
    image: &Path,
    journal: Option<&Path>,
    durability: Durability,
) -> io::Result<u64> {
    let regions = regions(&fs::read_to_string(format!("/proc/{pid}/maps"))?);
    let first = regions.first().ok_or(io::ErrorKind::NotFound)?;
    if !cover_exactly(&regions, size) {
        return Err(unexpected_mapping());
    }
    // Opens the mapped file itself, even if it has been renamed or removed.
    let origin = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end))?;
    if origin.metadata()?.len() != size {
        return Err(unexpected_mapping());
    }
    let target = File::options().read(true).write(true).create_new(true).open(image)?;
    image::copy_image(&origin, &target)?;
    let private_bytes = match journal {
        Some(journal) => journal::write(pid, &regions, journal)?,
        None => write_private_pages(pid, &regions, &origin, &target, durability)?,
    };
    durability.sync(&target)?;
    Ok(private_bytes)
}

/// Writes the private pages to `target`, a copy of `origin`; returns their bytes.
fn write_private_pages(
    pid: i32,
    regions: &[Region],
    origin: &File,
    target: &File,
    durability: Durability,
) -> io::Result<u64> {
    let mut private_bytes = 0;
    writeback::while_writing(target, durability, |writeback| {
        private_pages::read(pid, regions, |batch| {
            batch.runs().try_for_each(|(offset, now)| image::write_changes(target, origin, offset, now))?;
            private_bytes += batch.bytes().len() as u64;
            if let Some((from, to)) = batch.bounds() {
                writeback.written(from, to);
            }
            Ok(())
        })
    })?;
    Ok(private_bytes)
}

/// Returns the mappings in `/proc/<pid>/maps` that are guest memory.
fn regions(maps: &str) -> Vec<Region> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = fields.nth(1)?;
        let path = line.splitn(6, ' ').nth(5)?.trim();
        let name = path.strip_suffix(" (deleted)").unwrap_or(path).rsplit('/').next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let region = Region { start: number(start)?, end: number(end)?, offset: number(offset)? };
        (name == MEMORY_FILE).then_some(region)
    };
    maps.lines().filter_map(parse).collect()
}

/// Whether the regions map each of `size` bytes exactly once. Code that has taken over QEMU can map
/// what it likes.
fn cover_exactly(regions: &[Region], size: u64) -> bool {
    let mut sorted: Vec<Region> = regions.to_vec();
    sorted.sort_unstable_by_key(|region| region.offset);
    let end = sorted.iter().try_fold(0, |at, region| {
        (region.offset == at && region.start < region.end).then_some(at + (region.end - region.start))
    });
    end == Some(size)
}

fn unexpected_mapping() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "QEMU's mappings of the guest memory are not the expected ones",
    )
}

/// Converts an offset or a number of pages to an index.
#[expect(clippy::cast_possible_truncation, reason = "64-bit machines only")]
fn index(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_found_among_mappings() {
        let maps = "7f0000000000-7f0010000000 rw-p 00000000 00:2f 260   /guest-memory\n\
                    7f0010000000-7f0020000000 rw-p 10000000 00:2f 260   /x/guest-memory (deleted)\n\
                    7f1000000000-7f1000001000 rw-p 00000000 00:00 0\n\
                    7f2000000000-7f2000001000 r-xp 00000000 fe:00 12   /usr/bin/qemu-system-x86_64\n";
        let found = regions(maps);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Region { start: 0x7f00_1000_0000, end: 0x7f00_2000_0000, offset: 0x1000_0000 });
        assert!(cover_exactly(&found, 0x2000_0000));
        assert!(!cover_exactly(&found, 0x1000_0000), "larger than the size");
        assert!(!cover_exactly(&found[1..], 0x1000_0000), "the first part is missing");
        assert!(!cover_exactly(&[found[0], found[0]], 0x2000_0000), "the first part is mapped twice");
    }
}
