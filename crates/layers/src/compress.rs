//! Compression of files that nobody writes to any more, in place, a piece at a time.
//! Only what a file has alone: compressing what others share would give it blocks of its own.
//! Readers, also those that have the file mapped, see the same bytes all the time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use sys::{Extent, btrfs, extents};

use crate::trees::is_btrfs;

/// Bytes that are compressed together.
const STEP: u64 = 4 << 20;
/// Less does not become fewer blocks.
const LEAST: u64 = 16 << 10;
/// Set on what is done: what cannot be compressed would be tried again and again.
const DONE: &str = "user.cofferdam.compressed";

/// Compresses what the file, open for reading and writing, shares with no other. On other file systems than btrfs it does nothing. Blocks. After
/// each piece `rest` is told how long that took; no more is done when it answers false.
///
/// # Errors
/// There is no room for the next piece, or the file cannot be looked at.
pub fn compress(file: &File, mut rest: impl FnMut(Duration) -> bool) -> io::Result<()> {
    if !is_btrfs(file)? || fgetxattr(file, DONE, &mut [0u8; 1]).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    loop {
        let found = extents(file.as_fd(), at)?;
        for run in found.chunk_by(|one, next| one.is_plain == next.is_plain && end(one) == next.start) {
            let (first, last) = (run[0], run[run.len() - 1]);
            if !first.is_plain || end(&last) - first.start < LEAST {
                continue;
            }
            let mut start = first.start;
            while start < end(&last) {
                let begun = Instant::now();
                btrfs::compress(file.as_fd(), start, STEP.min(end(&last) - start))?;
                start += STEP;
                if !rest(begun.elapsed()) {
                    return Ok(());
                }
            }
        }
        match found.last() {
            Some(last) if !last.is_last => at = end(last),
            _ => return Ok(fsetxattr(file, DONE, b"", XattrFlags::empty())?),
        }
    }
}

fn end(extent: &Extent) -> u64 {
    extent.start + extent.length
}
