//! Compresses idle files on btrfs in place, a piece at a time.
//! Extents that other files share are left alone: compressing them would give the file blocks of its own.
//! Readers, also those that have the file mapped, see the same bytes all the time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use sys::{Extent, btrfs, extents};

use crate::trees::is_btrfs;

/// Number of bytes that are compressed in one call.
const STEP: u64 = 4 << 20;
/// Minimum length of a run of extents, bytes: compressing less saves no blocks.
const MIN_RUN: u64 = 16 << 10;
/// Attribute of files that were compressed, so that incompressible ones are not tried again and again.
const DONE: &str = "user.cofferdam.compressed";

/// Compresses the extents of a file that no other file shares. The file must be open for reading and writing. Does nothing on file
/// systems other than btrfs. Blocks. Calls `rest` after each piece with the time it took, and stops early when that returns false.
///
/// # Errors
/// The disk has no room for the next piece, or the file's extents cannot be read.
pub fn compress(file: &File, mut rest: impl FnMut(Duration) -> bool) -> io::Result<()> {
    if !is_btrfs(file)? || fgetxattr(file, DONE, &mut [0u8; 1]).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    loop {
        let found = extents(file.as_fd(), at)?;
        for run in found.chunk_by(|one, next| one.is_plain == next.is_plain && end(one) == next.start) {
            let (first, last) = (run[0], run[run.len() - 1]);
            if !first.is_plain || end(&last) - first.start < MIN_RUN {
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

/// Returns the offset at which an extent ends.
fn end(extent: &Extent) -> u64 {
    extent.start + extent.length
}
