//! The extents of a file on its disk, and whether other files share them.
//! `FS_IOC_FIEMAP` (`Documentation/filesystems/fiemap.rst`), which every file system with shared blocks has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::raw::syscall;

const FIEMAP: usize = 0xc020_660b;
/// Maximum number of extents that one call returns.
const MAX_EXTENTS: usize = 128;

const LAST: u32 = 1;
const ENCODED: u32 = 8;
const INLINE: u32 = 0x200;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

/// A contiguous part of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, bytes.
    pub start: u64,
    /// Length, bytes.
    pub length: u64,
    /// Whether no other file shares it and it is stored as it was written: neither compressed nor inside the file's metadata.
    pub is_plain: bool,
    /// Whether it is the file's last extent.
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

/// `struct fiemap` with room for the extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    unused: u32,
    found: [Found; MAX_EXTENTS],
}

/// Returns the first extents of a file from the offset `start` on; none if there are only holes.
///
/// # Errors
/// The file system does not support it.
pub fn extents(file: BorrowedFd<'_>, start: u64) -> io::Result<Vec<Extent>> {
    let mut map = Map {
        start,
        length: u64::MAX - start,
        flags: 0,
        mapped: 0,
        count: MAX_EXTENTS as u32,
        unused: 0,
        found: [Found::default(); MAX_EXTENTS],
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
