//! A guest's memory on disk. QEMU maps an image privately; what the guest wrote since are the pages that are its own, and an image of
//! now is a copy of the old one (shared blocks where the disk can) with those pages written over it. So every image is whole, none
//! depends on another, and a machine started from it is a machine started from any. What must last is quicker in a journal first.

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

/// Where a machine's memory is in its monitor's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    /// Of its first byte in the image.
    offset: u64,
}

/// Writes the memory, `size` bytes, of the stopped machine run by process `pid` as a new image. Answers how many bytes were the
/// machine's own. With a journal they are in there, for good, and the image is one of now once that has been replayed.
///
/// # Errors
/// The process is gone or does not have such a memory, or the disk is full.
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
    // The very file, whatever has become of its name.
    let origin = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end))?;
    if origin.metadata()?.len() != size {
        return Err(unexpected_mapping());
    }
    let target = File::options().read(true).write(true).create_new(true).open(image)?;
    image::copy_image(&origin, &target)?;
    let own = match journal {
        Some(journal) => journal::write(pid, &regions, journal)?,
        None => write_private_pages(pid, &regions, &origin, &target, durability)?,
    };
    durability.sync(&target)?;
    Ok(own)
}

/// Returns how many bytes there were.
fn write_private_pages(
    pid: i32,
    regions: &[Region],
    origin: &File,
    target: &File,
    durability: Durability,
) -> io::Result<u64> {
    let mut own = 0;
    writeback::while_writing(target, durability, |writeback| {
        private_pages::read(pid, regions, |batch| {
            batch.runs().try_for_each(|(offset, now)| image::write_changes(target, origin, offset, now))?;
            own += batch.bytes().len() as u64;
            if let Some((from, to)) = batch.bounds() {
                writeback.written(from, to);
            }
            Ok(())
        })
    })?;
    Ok(own)
}

/// Lines of `/proc/<pid>/maps` that are the guest's memory.
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

/// Whether these are a memory of `size` bytes, each of them once. Whoever has taken QEMU over maps what it likes.
fn cover_exactly(regions: &[Region], size: u64) -> bool {
    let mut sorted: Vec<Region> = regions.to_vec();
    sorted.sort_unstable_by_key(|region| region.offset);
    let end = sorted.iter().try_fold(0, |at, region| {
        (region.offset == at && region.start < region.end).then_some(at + (region.end - region.start))
    });
    end == Some(size)
}

fn unexpected_mapping() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the machine's memory is not mapped as it should be")
}

/// Pages within one region are fewer than memory has bytes.
#[expect(clippy::cast_possible_truncation, reason = "64-bit machines only")]
fn index(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_found_among_mappings() {
        let maps = "7f0000000000-7f0010000000 rw-p 00000000 00:2f 260   /guest-memory\n\
                    7f0010000000-7f0020000000 rw-p 10000000 00:2f 260   /x/guest-memory (deleted)\n\
                    7f1000000000-7f1000001000 rw-p 00000000 00:00 0\n\
                    7f2000000000-7f2000001000 r-xp 00000000 fe:00 12   /usr/bin/qemu-system-x86_64\n";
        let found = regions(maps);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Region { start: 0x7f00_1000_0000, end: 0x7f00_2000_0000, offset: 0x1000_0000 });
        assert!(cover_exactly(&found, 0x2000_0000));
        assert!(!cover_exactly(&found, 0x1000_0000), "more than there is");
        assert!(!cover_exactly(&found[1..], 0x1000_0000), "a hole");
        assert!(!cover_exactly(&[found[0], found[0]], 0x2000_0000), "the same twice");
    }
}
