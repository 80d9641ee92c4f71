//! Where the content of a file is on its disk, as far as that matters here: whether it is there alone.
//! `FS_IOC_FIEMAP` (`Documentation/filesystems/fiemap.rst`).
//! Works on every file system that shares blocks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::raw::syscall;

const FIEMAP: usize = 0xc020_660b;
/// Extents that one call answers with.
const MOST: usize = 128;

const LAST: u32 = 1;
const ENCODED: u32 = 8;
const INLINE: u32 = 0x200;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

/// Content of a file that lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// In the file, bytes.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// No other file has it, and it is there as it was written: neither compressed nor among the file's attributes.
    pub is_plain: bool,
    /// The file ends with it.
    pub is_last: bool,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    unused: [u32; 3],
}

/// `struct fiemap` with room for what is found.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    unused: u32,
    found: [Found; MOST],
}

/// The first extents of a file from `start` on; none if there is nothing but holes.
///
/// # Errors
/// The file system cannot tell.
pub fn extents(file: BorrowedFd<'_>, start: u64) -> io::Result<Vec<Extent>> {
    let mut map = Map {
        start,
        length: u64::MAX - start,
        flags: 0,
        mapped: 0,
        count: MOST as u32,
        unused: 0,
        found: [Found::default(); MOST],
    };
    // SAFETY: the structure is the kernel's and has room for as many extents as it says.
    unsafe { syscall(libc::SYS_ioctl, [file.as_raw_fd() as usize, FIEMAP, &raw mut map as usize, 0, 0, 0]) }?;
    let found = map.found.iter().take(map.mapped as usize);
    Ok(found
        .map(|found| Extent {
            start: found.logical,
            length: found.length,
            is_plain: found.flags & (ENCODED | INLINE | UNWRITTEN | SHARED) == 0,
            is_last: found.flags & LAST != 0,
        })
        .collect())
}
