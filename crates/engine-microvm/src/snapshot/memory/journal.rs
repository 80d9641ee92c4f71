//! Journals: the private pages of a VM, written one after another to a plain file.
//!
//! Writing a journal is quicker than writing an image: an image shares blocks with others, so that
//! the file system must handle each page. A snapshot with a journal is complete and on the disk; a
//! restore replays the journal into the image first. Replaying can be interrupted anywhere and
//! repeated: it writes the same pages to the same places.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use engine::Durability;
use rustix::fs::{FlockOperation, flock};
use sys::MAX_PIECES;

use super::private_pages::{self, MAX_BATCH_BYTES, PageBatch};
use super::writeback;
use super::{PAGE, Region, image, index};

/// First bytes of each batch.
const MAGIC: [u8; 8] = *b"pages\0\0\x01";
/// Length of magic and number of runs. All numbers are little endian, 8 bytes each.
const HEADER_BYTES: usize = 16;
/// Length of a run's entry: its offset in the image and its length.
const RUN_BYTES: usize = 16;
/// Flag in the unused low bits of a run's length: all pages of the run are zero and not in the
/// journal. A guest zeroes the pages that it frees.
const ZERO_FLAG: u64 = 1;

/// Writes the private pages of process `pid` in these regions to a new journal and syncs its
/// content; syncing its directory entry is left to the caller. Returns the number of bytes in those
/// pages.
///
/// # Errors
/// The process has ended, or the disk is full.
pub(super) fn write(pid: i32, regions: &[Region], path: &Path) -> io::Result<u64> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let (mut private_bytes, mut at) = (0, 0);
    writeback::while_writing(&file, Durability::Durable, |writeback| {
        private_pages::read(pid, regions, |batch| {
            let runs: Vec<(u64, &[u8], bool)> = runs(batch).collect();
            let header = header(&runs);
            (&file).write_all(&header)?;
            let mut end = at + header.len() as u64;
            for (_, bytes, _) in runs.iter().filter(|(_, _, is_zero)| !is_zero) {
                (&file).write_all(bytes)?;
                end += bytes.len() as u64;
            }
            writeback.written(at, end);
            at = end;
            private_bytes += batch.bytes().len() as u64;
            Ok(())
        })
    })?;
    file.sync_data()?;
    Ok(private_bytes)
}

/// Splits the runs of a batch into runs of pages that are all zero or all not zero: offset in the
/// image, content, whether it is zero.
fn runs(batch: &PageBatch) -> impl Iterator<Item = (u64, &[u8], bool)> {
    batch.runs().flat_map(|(offset, bytes)| {
        let runs = image::runs_of(bytes, |_, page| image::is_zero(page));
        runs.map(move |(at, bytes, is_zero)| (offset + at as u64, bytes, is_zero))
    })
}

/// Returns the header of a batch, padded to whole pages: the content of pages then begins at a page
/// boundary in the file as it does in memory, which is what copying is quick with.
fn header(runs: &[(u64, &[u8], bool)]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend((runs.len() as u64).to_le_bytes());
    for (offset, bytes, is_zero) in runs {
        header.extend(offset.to_le_bytes());
        header.extend((bytes.len() as u64 | if *is_zero { ZERO_FLAG } else { 0 }).to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(index(PAGE)), 0);
    header
}

/// Writes the pages of a journal to its image, syncs that, and removes the journal. Does nothing if
/// there is no journal (any more). Blocks while another task replays it.
///
/// # Errors
/// The disk is full, the journal is damaged, or `should_continue` returned false; the journal is
/// kept.
pub(crate) fn replay(journal: &Path, image: &Path, should_continue: &dyn Fn() -> bool) -> io::Result<()> {
    let file = match File::open(journal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    flock(&file, FlockOperation::LockExclusive)?;
    if is_removed(&file)? {
        return Ok(());
    }
    match write_into(&file, image, should_continue) {
        // The snapshot was removed meanwhile.
        _ if is_removed(&file)? => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_file(journal),
    }
}

fn is_removed(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() == 0)
}

fn write_into(journal: &File, image: &Path, should_continue: &dyn Fn() -> bool) -> io::Result<()> {
    let target = File::options().read(true).write(true).open(image)?;
    let size = target.metadata()?.len();
    let (zeros, mut bytes) = (vec![0; MAX_BATCH_BYTES], vec![0; MAX_BATCH_BYTES + index(PAGE)]);
    let start = bytes.as_ptr().align_offset(index(PAGE));
    writeback::while_writing(&target, Durability::Durable, |writeback| {
        while let Some(runs) = read_header(journal, size)? {
            if is_removed(journal)? || !should_continue() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            for (offset, length, is_zero) in runs {
                let now = if is_zero {
                    &zeros[..length]
                } else {
                    let now = &mut bytes[start..][..length];
                    (&mut &*journal).read_exact(now)?;
                    now
                };
                image::write_changes(&target, &target, offset, now)?;
                writeback.written(offset, offset + length as u64);
            }
        }
        Ok(())
    })?;
    target.sync_data()
}

/// Reads the header of the next batch: for each run its offset in an image of `size` bytes, its
/// length, and whether it is zero. Returns `None` at the end of the journal.
fn read_header(mut journal: &File, size: u64) -> io::Result<Option<Vec<(u64, usize, bool)>>> {
    let damaged =
        || io::Error::new(io::ErrorKind::InvalidData, "the journal of a memory snapshot is damaged");
    let mut page = vec![0; index(PAGE)];
    match journal.read(&mut page)? {
        0 => return Ok(None),
        some => journal.read_exact(&mut page[some..])?,
    }
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight of them"));
    let count = usize::try_from(number(&page[8..HEADER_BYTES])).map_err(|_| damaged())?;
    if page[..8] != MAGIC || count > MAX_PIECES {
        return Err(damaged());
    }
    page.resize((HEADER_BYTES + count * RUN_BYTES).next_multiple_of(index(PAGE)), 0);
    journal.read_exact(&mut page[index(PAGE)..])?;
    let entries = page[HEADER_BYTES..].chunks_exact(RUN_BYTES).take(count);
    let runs = entries.map(|entry| {
        let (offset, length) = (number(&entry[..8]), number(&entry[8..]));
        let (length, is_zero) = (length & !ZERO_FLAG, length & ZERO_FLAG != 0);
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= size);
        let is_valid =
            is_inside && offset % PAGE == 0 && length % PAGE == 0 && length <= MAX_BATCH_BYTES as u64;
        if is_valid { Ok((offset, index(length), is_zero)) } else { Err(damaged()) }
    });
    runs.collect::<io::Result<_>>().map(Some)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const PAGES: usize = 700;

    /// Returns page-aligned memory of this process as a region of an image.
    fn memory(bytes: &mut Vec<u8>) -> (usize, Region) {
        bytes.resize((PAGES + 1) * index(PAGE), 0);
        let start = bytes.as_ptr().align_offset(index(PAGE));
        // Every seventh page is zero.
        for (page, bytes) in bytes[start..].chunks_exact_mut(index(PAGE)).enumerate() {
            bytes.fill(u8::try_from(page % 7).unwrap());
        }
        let address = bytes[start..].as_ptr() as u64;
        (start, Region { start: address, end: address + PAGES as u64 * PAGE, offset: 3 * PAGE })
    }

    #[test]
    fn an_interrupted_replay_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, image) = (dir.path().join("journal"), dir.path().join("image"));
        let mut bytes = Vec::new();
        let (start, region) = memory(&mut bytes);
        let pid = i32::try_from(std::process::id()).unwrap();
        let length = PAGES * index(PAGE);
        assert_eq!(write(pid, &[region], &journal).unwrap(), length as u64);
        let whole = fs::read(&journal).unwrap();
        assert!(whole.len() < length, "zero pages are in the journal");
        let fresh = || {
            let file = File::create(&image).unwrap();
            file.set_len((PAGES as u64 + 10) * PAGE).unwrap();
            file.write_all_at(&[9; 4096], 0).unwrap();
            file.write_all_at(&[9; 4096], 10 * PAGE).unwrap();
        };
        let is_replayed = || {
            let now = fs::read(&image).unwrap();
            now[..4096] == [9; 4096]
                && now[3 * 4096..][..length] == bytes[start..][..length]
                && now[3 * 4096 + length..].iter().all(|byte| *byte == 0)
        };
        fresh();
        // A journal that was cut off is an error, and nothing is removed.
        fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
        assert!(replay(&journal, &image, &|| true).is_err());
        assert!(journal.exists() && !is_replayed());
        fs::write(&journal, &whole).unwrap();
        assert!(replay(&journal, &image, &|| false).is_err(), "the replay continued");
        assert!(journal.exists());
        replay(&journal, &image, &|| true).unwrap();
        assert!(is_replayed() && !journal.exists());
        replay(&journal, &image, &|| true).unwrap();
        fs::write(&journal, &whole).unwrap();
        replay(&journal, &image, &|| true).unwrap();
        assert!(is_replayed(), "a second replay changed the image");
    }

    #[test]
    fn runs_outside_of_the_image_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, image) = (dir.path().join("journal"), dir.path().join("image"));
        File::create(&image).unwrap().set_len(4 * PAGE).unwrap();
        let with = |count: u64, offset: u64, length: u64| {
            let mut header = MAGIC.to_vec();
            [count, offset, length].iter().for_each(|number| header.extend(number.to_le_bytes()));
            header.resize(3 * index(PAGE), 7);
            fs::write(&journal, header).unwrap();
            replay(&journal, &image, &|| true).map_err(|error| error.kind())
        };
        for (count, offset, length) in [
            (1, 4 * PAGE, PAGE),
            (1, u64::MAX - PAGE + 1, PAGE),
            (1, 1, PAGE),
            (1, 0, 1),
            (u64::MAX, 0, PAGE),
        ] {
            assert_eq!(
                with(count, offset, length),
                Err(io::ErrorKind::InvalidData),
                "{count} {offset} {length}"
            );
        }
        assert_eq!(fs::metadata(&image).unwrap().len(), 4 * PAGE);
        assert_eq!(with(1, 2 * PAGE, 2 * PAGE), Ok(()));
    }
}
