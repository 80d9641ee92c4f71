//! A guest's memory on disk. QEMU maps an image privately; what the guest wrote since are the pages that are its own, and an image of
//! now is a copy of the old one (shared blocks where the disk can) with those pages written over it. So every image is whole, none
//! depends on another, and a machine started from it is a machine started from any.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use engine_host::Lasting;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::machine::command::GUEST_MEMORY;

const PAGE: u64 = 4096;
/// Pages read at once.
const RUN: u64 = 256;

/// Bits of `/proc/<pid>/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Where a machine's memory is in its monitor's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    /// Of its first byte in the image.
    offset: u64,
}

/// Writes the memory, `size` bytes, of the stopped machine run by process `pid` as a new image. Answers how many bytes were the
/// machine's own.
///
/// # Errors
/// The process is gone or does not have such a memory, or the disk is full.
pub(crate) fn save(pid: i32, size: u64, image: &Path, lasting: Lasting) -> io::Result<u64> {
    let regions = regions(&fs::read_to_string(format!("/proc/{pid}/maps"))?);
    let first = regions.first().ok_or(io::ErrorKind::NotFound)?;
    if !are_all_of(&regions, size) {
        return Err(odd_memory());
    }
    // The very file, whatever has become of its name.
    let origin = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end))?;
    if origin.metadata()?.len() != size {
        return Err(odd_memory());
    }
    let target = File::options().read(true).write(true).create_new(true).open(image)?;
    copy_image(&origin, &target)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut own = 0;
    for region in &regions {
        own += save_region(*region, &pagemap, &memory, &origin, &target)?;
    }
    lasting.settle(&target)?;
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
        (name == GUEST_MEMORY).then_some(region)
    };
    maps.lines().filter_map(parse).collect()
}

/// Whether these are a memory of `size` bytes, each of them once. Whoever has taken QEMU over maps what it likes.
fn are_all_of(regions: &[Region], size: u64) -> bool {
    let mut sorted: Vec<Region> = regions.to_vec();
    sorted.sort_unstable_by_key(|region| region.offset);
    let end = sorted.iter().try_fold(0, |at, region| {
        (region.offset == at && region.start < region.end).then_some(at + (region.end - region.start))
    });
    end == Some(size)
}

fn odd_memory() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the machine's memory is not mapped as it should be")
}

fn save_region(
    region: Region,
    pagemap: &File,
    memory: &File,
    origin: &File,
    target: &File,
) -> io::Result<u64> {
    let pages = (region.end - region.start) / PAGE;
    let mut entries = vec![0; usize::try_from(pages * 8).map_err(io::Error::other)?];
    pagemap.read_exact_at(&mut entries, region.start / PAGE * 8)?;
    let is_own: Vec<bool> = entries
        .chunks_exact(8)
        .map(|entry| {
            let bits = u64::from_ne_bytes(entry.try_into().expect("chunks of eight"));
            bits & (PRESENT | SWAPPED) != 0 && bits & OF_FILE == 0
        })
        .collect();
    let (mut now, mut before) = (Vec::new(), Vec::new());
    let mut own = 0;
    let mut page = 0;
    while page < pages {
        if !is_own[index(page)] {
            page += 1;
            continue;
        }
        let run = is_own[index(page)..].iter().take(index(RUN)).take_while(|own| **own).count() as u64;
        let offset = region.offset + page * PAGE;
        now.resize(index(run * PAGE), 0);
        memory.read_exact_at(&mut now, region.start + page * PAGE)?;
        before.clear();
        before.resize(now.len(), 0);
        read_data(origin, &mut before, offset)?;
        write_changes(target, offset, &now, &before)?;
        own += run * PAGE;
        page += run;
    }
    Ok(own)
}

/// Pages within one region are fewer than memory has bytes.
#[expect(clippy::cast_possible_truncation, reason = "64-bit machines only")]
fn index(number: u64) -> usize {
    number as usize
}

/// Writes the pages that differ, as few writes as there are runs of them. Zeros become holes again.
fn write_changes(target: &File, offset: u64, now: &[u8], before: &[u8]) -> io::Result<()> {
    let page = index(PAGE);
    let kind = |at: usize| {
        let bytes = &now[at..at + page];
        if bytes == &before[at..at + page] {
            Change::None
        } else if bytes.iter().all(|byte| *byte == 0) {
            Change::Zero
        } else {
            Change::Data
        }
    };
    let mut at = 0;
    while at < now.len() {
        let first = kind(at);
        let mut end = at + page;
        while end < now.len() && kind(end) == first {
            end += page;
        }
        let position = offset + at as u64;
        match first {
            Change::None => {}
            Change::Data => target.write_all_at(&now[at..end], position)?,
            Change::Zero => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match fallocate(target, flags, position, (end - at) as u64) {
                    Err(Errno::OPNOTSUPP) => target.write_all_at(&now[at..end], position)?,
                    answer => answer?,
                }
            }
        }
        at = end;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Zero,
    Data,
}

/// Reads what is there into a buffer of zeros. Holes, which most of a warm start is, need not be read.
fn read_data(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let end = offset + buffer.len() as u64;
    each_piece(file, offset, end, |from, to| {
        file.read_exact_at(&mut buffer[index(from - offset)..index(to - offset)], from)
    })
}

/// Calls `take` with the bounds of each piece of data between two positions.
fn each_piece(
    file: &File,
    from: u64,
    to: u64,
    mut take: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let first = match seek(file, SeekFrom::Data(at)) {
            Ok(first) if first < to => first,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(first))?.min(to);
        take(first, at)?;
    }
    Ok(())
}

/// Makes `target` equal to `origin`: with shared blocks, or byte by byte without the holes.
fn copy_image(origin: &File, target: &File) -> io::Result<()> {
    let size = origin.metadata()?.len();
    match ioctl_ficlone(target, origin) {
        Ok(()) => return Ok(()),
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    target.set_len(size)?;
    each_piece(origin, 0, size, |from, to| {
        let mut at = from;
        while at < to {
            let (mut source, mut sink) = (at, at);
            let length = index(to - at);
            match copy_file_range(origin.as_fd(), Some(&mut source), target.as_fd(), Some(&mut sink), length)?
            {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => at += length as u64,
            }
        }
        Ok(())
    })
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
        assert!(are_all_of(&found, 0x2000_0000));
        assert!(!are_all_of(&found, 0x1000_0000), "more than there is");
        assert!(!are_all_of(&found[1..], 0x1000_0000), "a hole");
        assert!(!are_all_of(&[found[0], found[0]], 0x2000_0000), "the same twice");
    }

    #[test]
    fn an_image_is_copied_and_changed_where_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin");
        let origin = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        origin.set_len(64 * PAGE).unwrap();
        origin.write_all_at(&[7; 4096], 8 * PAGE).unwrap();
        let target =
            File::options().create_new(true).read(true).write(true).open(dir.path().join("new")).unwrap();
        copy_image(&origin, &target).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(dir.path().join("new")).unwrap());
        let mut now = vec![0; 4 * 4096];
        now[3 * 4096..].fill(9);
        let mut before = vec![0; now.len()];
        read_data(&origin, &mut before, 8 * PAGE).unwrap();
        assert!(before[..4096] == [7; 4096] && before[4096..].iter().all(|byte| *byte == 0));
        write_changes(&target, 8 * PAGE, &now, &before).unwrap();
        let mut seen = vec![1; now.len()];
        target.read_exact_at(&mut seen, 8 * PAGE).unwrap();
        assert!(seen == now);
    }
}
