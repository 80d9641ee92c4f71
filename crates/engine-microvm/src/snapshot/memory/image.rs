//! Memory images as files: copying one without its holes, and writing changed pages to a copy.
//!
//! Zero pages are holes. Copies share blocks where the file system can.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::{PAGE, index};

/// A page of zeros.
static ZERO: [u8; 4096] = [0; 4096];

/// Writes a run of pages at `offset` to `target`, a copy of `origin`, where they differ from it.
/// Pages that became zero become holes.
///
/// # Errors
/// The disk is full.
pub(super) fn write_changes(target: &File, origin: &File, offset: u64, now: &[u8]) -> io::Result<()> {
    let end = offset + now.len() as u64;
    let within = |from: u64, to: u64| &now[index(from - offset)..index(to - offset)];
    let mut at = offset;
    let mut before = Vec::new();
    // Holes need not be read, and most of a boot snapshot is holes.
    for_each_data_range(origin, offset, end, |from, to| {
        let (from, to) = ((from & !(PAGE - 1)).max(at), to.next_multiple_of(PAGE).min(end));
        if from >= to {
            return Ok(());
        }
        write_pages(target, at, within(at, from), |_| &ZERO)?;
        before.resize(index(to - from), 0);
        origin.read_exact_at(&mut before, from)?;
        write_pages(target, from, within(from, to), |page| &before[page..page + ZERO.len()])?;
        at = to;
        Ok(())
    })?;
    write_pages(target, at, within(at, end), |_| &ZERO)
}

/// Writes with one call for each run of pages that change alike. `before` returns the old content
/// of the page at an offset in `now`.
fn write_pages<'a>(
    target: &File,
    offset: u64,
    now: &[u8],
    before: impl Fn(usize) -> &'a [u8],
) -> io::Result<()> {
    let change = |at: usize, page: &[u8]| {
        if page == before(at) {
            PageChange::None
        } else if is_zero(page) {
            PageChange::Zero
        } else {
            PageChange::Data
        }
    };
    for (at, bytes, change) in runs_of(now, change) {
        let position = offset + at as u64;
        match change {
            PageChange::None => {}
            PageChange::Data => target.write_all_at(bytes, position)?,
            PageChange::Zero => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match fallocate(target, flags, position, bytes.len() as u64) {
                    Err(Errno::OPNOTSUPP) => target.write_all_at(bytes, position)?,
                    answer => answer?,
                }
            }
        }
    }
    Ok(())
}

/// Whether all bytes of a page are zero.
pub(super) fn is_zero(page: &[u8]) -> bool {
    *page == ZERO
}

/// Splits pages into runs of the same kind: offset, content, kind.
pub(super) fn runs_of<K: PartialEq + Copy>(
    pages: &[u8],
    kind: impl Fn(usize, &[u8]) -> K,
) -> impl Iterator<Item = (usize, &[u8], K)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let page = |at: usize| pages.get(at..at + ZERO.len());
        let first = kind(start, page(start)?);
        while page(at).is_some_and(|page| kind(at, page) == first) {
            at += ZERO.len();
        }
        Some((start, &pages[start..at], first))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageChange {
    None,
    Zero,
    Data,
}

/// Calls `take` with the bounds of each range of data between two positions.
fn for_each_data_range(
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

/// Copies `origin` to `target`: by sharing blocks, or else byte by byte without the holes.
///
/// # Errors
/// The disk is full.
pub(super) fn copy_image(origin: &File, target: &File) -> io::Result<()> {
    let size = origin.metadata()?.len();
    match ioctl_ficlone(target, origin) {
        Ok(()) => return Ok(()),
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    target.set_len(size)?;
    for_each_data_range(origin, 0, size, |from, to| {
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
    use std::fs;

    use super::*;

    #[test]
    fn changed_pages_are_written_to_a_copy() {
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
        write_changes(&target, &origin, 8 * PAGE, &now).unwrap();
        let mut seen = vec![1; now.len()];
        target.read_exact_at(&mut seen, 8 * PAGE).unwrap();
        assert!(seen == now);
        let data = |file: &File| seek(file, SeekFrom::Data(0)).unwrap();
        assert_eq!((data(&origin), data(&target)), (8 * PAGE, 11 * PAGE), "zero pages are not holes");
        write_changes(&target, &origin, 7 * PAGE, &[7; 3 * 4096]).unwrap();
        target.read_exact_at(&mut seen[..3 * 4096], 7 * PAGE).unwrap();
        // Pages that are equal in the origin are not written.
        assert!(
            seen[..4096] == [7; 4096]
                && seen[4096..2 * 4096] == ZERO
                && seen[2 * 4096..3 * 4096] == [7; 4096]
        );
    }
}
