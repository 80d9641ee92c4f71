//! btrfs subvolumes and simple quotas, by ioctl: instant copies of whole trees, and a limit on each.
//! Sizes are bytes. Names are single path components below an open directory, so no path is ever walked here.
//! The kernel's structures are spelled out as byte blocks where only a few fields of thousands matter.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::raw::syscall;

const SUBVOL_CREATE_V2: usize = 0x5000_9418;
const SNAP_CREATE_V2: usize = 0x5000_9417;
const SNAP_DESTROY_V2: usize = 0x5000_943f;
const QUOTA_CTL: usize = 0xc010_9428;
const QGROUP_CREATE: usize = 0x4010_942a;
const QGROUP_LIMIT: usize = 0x8030_942b;
const FS_INFO: usize = 0x8400_941f;
const GET_SUBVOL_INFO: usize = 0x81f8_943c;
const TREE_SEARCH: usize = 0xd000_9411;
const DEFRAG_RANGE: usize = 0x4030_9410;
const RESIZE: usize = 0x5000_9403;

const SUBVOL_READ_ONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const SUBVOL_BY_ID: u64 = 1 << 4;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const INHERIT_SET_LIMITS: u64 = 1;
const LIMIT_MAX_REFERENCED: u64 = 1;
/// No limit, and the value that takes one away.
const UNLIMITED: u64 = u64::MAX;

const ROOT_TREE: u64 = 1;
const ROOT_REF: u32 = 156;

const NAME_MAX: usize = 4039;

/// The kernel's `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    /// Size and address of an [`Inherit`]; two words are unused.
    inherit: [u64; 4],
    /// A name, or in its first eight bytes an id.
    name: [u8; NAME_MAX + 1],
}

/// `struct btrfs_qgroup_limit`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Limit {
    flags: u64,
    max_referenced: u64,
    unused: [u64; 3],
}

/// `struct btrfs_qgroup_inherit` with room for one parent.
#[repr(C)]
struct Inherit {
    flags: u64,
    parents: u64,
    copies: [u64; 2],
    limit: Limit,
    parent: u64,
}

/// What a new subvolume may be charged for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quota {
    /// Most bytes.
    pub limit: Option<u64>,
    /// A group that is charged too.
    pub group: Option<QuotaGroup>,
}

/// A group of subvolumes that are charged together. Any number but 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaGroup(pub u32);

impl QuotaGroup {
    /// As the kernel numbers groups: a subvolume's own is its id, those above begin at 1 << 48.
    fn id(self) -> u64 {
        1 << 48 | u64::from(self.0)
    }
}

impl Limit {
    fn referenced(bytes: Option<u64>) -> Self {
        Self { flags: LIMIT_MAX_REFERENCED, max_referenced: bytes.unwrap_or(UNLIMITED), unused: [0; 3] }
    }
}

/// A subvolume's number and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subvolume {
    /// Never used again within a file system.
    pub id: u64,
    /// Nothing in it can change.
    pub read_only: bool,
}

/// # Safety
/// `argument` is what the kernel reads and writes for `request`.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: usize, argument: *mut T) -> io::Result<usize> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    let answer =
        unsafe { syscall(libc::SYS_ioctl, [fd.as_raw_fd() as usize, request, argument as usize, 0, 0, 0]) };
    Ok(answer?)
}

fn volume_ioctl(
    request: usize,
    at: BorrowedFd<'_>,
    source: i64,
    flags: u64,
    name: &[u8],
    quota: Quota,
) -> io::Result<()> {
    if name.len() > NAME_MAX || name.contains(&0) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let mut inherit = Inherit {
        flags: if quota.limit.is_some() { INHERIT_SET_LIMITS } else { 0 },
        parents: u64::from(quota.group.is_some()),
        copies: [0; 2],
        limit: Limit::referenced(quota.limit),
        parent: quota.group.map_or(0, QuotaGroup::id),
    };
    let mut args = VolumeArgs { fd: source, transid: 0, flags, inherit: [0; 4], name: [0; NAME_MAX + 1] };
    args.name[..name.len()].copy_from_slice(name);
    if quota.limit.is_some() || quota.group.is_some() {
        // The kernel wants exactly as many parents as there are.
        let unused = if quota.group.is_none() { size_of::<u64>() } else { 0 };
        args.flags |= SUBVOL_QGROUP_INHERIT;
        args.inherit = [(size_of::<Inherit>() - unused) as u64, &raw mut inherit as u64, 0, 0];
    }
    // SAFETY: the structure is the kernel's, the name ends in a zero, and `inherit` lives until the end.
    unsafe { ioctl(at, request, &raw mut args) }.map(drop)
}

/// Makes an empty subvolume `name` in the directory `at`.
///
/// # Errors
/// Not btrfs, no room, or the name is taken.
pub fn create_subvolume(at: BorrowedFd<'_>, name: &str, quota: Quota) -> io::Result<()> {
    volume_ioctl(SUBVOL_CREATE_V2, at, 0, 0, name.as_bytes(), quota)
}

/// Makes `name` in the directory `at` a copy of the open subvolume `source`. On disk when it returns.
///
/// # Errors
/// As [`create_subvolume`].
pub fn snapshot(
    at: BorrowedFd<'_>,
    name: &str,
    source: BorrowedFd<'_>,
    read_only: bool,
    quota: Quota,
) -> io::Result<()> {
    let flags = if read_only { SUBVOL_READ_ONLY } else { 0 };
    volume_ioctl(SNAP_CREATE_V2, at, source.as_raw_fd().into(), flags, name.as_bytes(), quota)
}

/// Removes the subvolume `name` from the directory `at`; its content goes in the background.
///
/// # Errors
/// Not a subvolume, or it holds others.
pub fn destroy_subvolume(at: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    volume_ioctl(SNAP_DESTROY_V2, at, 0, 0, name.as_bytes(), Quota::default())
}

/// Removes a subvolume wherever it is in the file system that `at` lies on.
///
/// # Errors
/// There is none, or it holds others.
pub fn destroy_subvolume_by_id(at: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args =
        VolumeArgs { fd: 0, transid: 0, flags: SUBVOL_BY_ID, inherit: [0; 4], name: [0; NAME_MAX + 1] };
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: the structure is the kernel's.
    unsafe { ioctl(at, SNAP_DESTROY_V2, &raw mut args) }.map(drop)
}

/// The ids of the subvolumes directly inside the subvolume `id`, at most the first hundred or so.
///
/// # Errors
/// Not btrfs.
pub fn nested_subvolumes(at: BorrowedFd<'_>, id: u64) -> io::Result<Vec<u64>> {
    /// `struct btrfs_ioctl_search_args`: the key, then room for what is found.
    #[repr(C)]
    struct Search {
        tree: u64,
        objects: [u64; 2],
        offsets: [u64; 2],
        transactions: [u64; 2],
        types: [u32; 2],
        count: u32,
        unused: u32,
        unused_too: [u64; 4],
        found: [u8; 4096 - 104],
    }
    let mut search = Search {
        tree: ROOT_TREE,
        objects: [id; 2],
        offsets: [0, u64::MAX],
        transactions: [0, u64::MAX],
        types: [ROOT_REF; 2],
        count: 4096,
        unused: 0,
        unused_too: [0; 4],
        found: [0; 4096 - 104],
    };
    // SAFETY: the structure is the kernel's.
    unsafe { ioctl(at, TREE_SEARCH, &raw mut search) }?;
    let mut ids = Vec::new();
    let mut rest = &search.found[..];
    for _ in 0..search.count {
        // transaction, object, offset: 64 bits each; type, length: 32 bits each.
        let Some((header, items)) = rest.split_first_chunk::<32>() else { break };
        let word = |at: usize| header[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
        let length = header[28..].try_into().map(u32::from_ne_bytes).unwrap_or_default();
        ids.push(word(16));
        rest = items.get(length as usize..).unwrap_or_default();
    }
    Ok(ids)
}

/// Has a part of a file written anew, compressed (zstd) where that makes it smaller. What it says stays the same for every reader, at any
/// moment; blocks that it shared are its own then. Blocks until it is compressed and on its way to the disk.
///
/// # Errors
/// Not btrfs, no room, or the file is not open for writing.
pub fn compress(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    const COMPRESS: u64 = 1;
    const START_IO: u64 = 2;
    const ZSTD: u32 = 3;
    /// `struct btrfs_ioctl_defrag_range_args`.
    #[repr(C)]
    struct Range {
        start: u64,
        length: u64,
        flags: u64,
        threshold: u32,
        compression: u32,
        unused: [u32; 4],
    }
    let flags = COMPRESS | START_IO;
    let mut range = Range { start, length, flags, threshold: 0, compression: ZSTD, unused: [0; 4] };
    // SAFETY: the structure is the kernel's.
    unsafe { ioctl(file, DEFRAG_RANGE, &raw mut range) }.map(drop)
}

/// Which subvolume the open file or directory is in.
///
/// # Errors
/// Not btrfs.
pub fn subvolume_of(file: BorrowedFd<'_>) -> io::Result<Subvolume> {
    const FLAGS: usize = 288;
    let mut info = [0u64; 504 / 8];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, GET_SUBVOL_INFO, info.as_mut_ptr()) }?;
    // BTRFS_ROOT_SUBVOL_RDONLY is another bit than the one asked for at creation.
    Ok(Subvolume { id: info[0], read_only: info[FLAGS / 8] & 1 != 0 })
}

/// The file system's UUID as it stands in `/sys/fs/btrfs`.
///
/// # Errors
/// Not btrfs.
pub fn filesystem_uuid(file: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = [0u64; 1024 / 8];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, FS_INFO, info.as_mut_ptr()) }?;
    let mut text = String::with_capacity(36);
    for (position, byte) in info[2..4].iter().flat_map(|word| word.to_ne_bytes()).enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Turns simple quotas on; they stay on. Linux 6.7.
///
/// # Errors
/// An older kernel, or quotas of the other kind are on.
pub fn enable_simple_quotas(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = [QUOTA_ENABLE_SIMPLE, 0];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, QUOTA_CTL, args.as_mut_ptr()) }.map(drop)
}

/// Sets or takes away the limit on what the subvolume `id` is charged for.
///
/// # Errors
/// Quotas are off, or there is no such subvolume.
pub fn limit_subvolume(file: BorrowedFd<'_>, id: u64, bytes: Option<u64>) -> io::Result<()> {
    set_limit(file, id, bytes)
}

/// Sets or takes away the limit on what all in `group` are charged for.
///
/// # Errors
/// Quotas are off, or there is no such group.
pub fn limit_group(file: BorrowedFd<'_>, group: QuotaGroup, bytes: Option<u64>) -> io::Result<()> {
    set_limit(file, group.id(), bytes)
}

fn set_limit(file: BorrowedFd<'_>, id: u64, bytes: Option<u64>) -> io::Result<()> {
    #[repr(C)]
    struct Args {
        id: u64,
        limit: Limit,
    }
    let mut args = Args { id, limit: Limit::referenced(bytes) };
    // SAFETY: the structure is the kernel's.
    unsafe { ioctl(file, QGROUP_LIMIT, &raw mut args) }.map(drop)
}

/// Makes a group. One that is there is a success.
///
/// # Errors
/// Quotas are off.
pub fn create_group(file: BorrowedFd<'_>, group: QuotaGroup) -> io::Result<()> {
    let mut args = [1, group.id()];
    // SAFETY: the block has the size that the request's number names.
    match unsafe { ioctl(file, QGROUP_CREATE, args.as_mut_ptr()) } {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        answer => answer.map(drop),
    }
}

/// Forgets the quota group of the subvolume `id`, which is gone.
///
/// # Errors
/// It is still charged for something.
pub fn forget_quota(file: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = [0, id];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, QGROUP_CREATE, args.as_mut_ptr()) }.map(drop)
}

/// Lets a file system on one device grow to the device's size.
///
/// # Errors
/// Not btrfs.
pub fn grow_to_device(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = [0u8; 4096];
    let what = b"1:max";
    // A file descriptor number first, which this request does not look at.
    args[8..8 + what.len()].copy_from_slice(what);
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(root, RESIZE, args.as_mut_ptr()) }.map(drop)
}
