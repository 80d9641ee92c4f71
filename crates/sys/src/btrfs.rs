//! btrfs subvolumes and simple quotas, by ioctl: instant copies of whole directory trees, and a size limit for each.
//! Sizes are in bytes. Names are single path components in an open directory, so no path is followed.
//! Kernel structures of which only a few fields matter are written as byte blocks.

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
/// The value that means no limit, and removes one.
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
    /// Size and address of an [`Inherit`]; the other two words are unused.
    inherit: [u64; 4],
    /// A name, or an id in the first eight bytes.
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

/// The quota of a new subvolume.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quota {
    /// Maximum size, bytes.
    pub limit: Option<u64>,
    /// A group that is charged for it, too.
    pub group: Option<QuotaGroup>,
}

/// A group of subvolumes that are charged together, by a number other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaGroup(pub u32);

impl QuotaGroup {
    /// Returns the kernel's id of the group: a subvolume's own group has the subvolume's id, higher groups start at 1 << 48.
    fn id(self) -> u64 {
        1 << 48 | u64::from(self.0)
    }
}

impl Limit {
    fn referenced(bytes: Option<u64>) -> Self {
        Self { flags: LIMIT_MAX_REFERENCED, max_referenced: bytes.unwrap_or(UNLIMITED), unused: [0; 3] }
    }
}

/// A subvolume's id and whether it is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subvolume {
    /// Its id, which the file system never uses again.
    pub id: u64,
    /// Whether nothing in it can change.
    pub read_only: bool,
}

/// Makes an ioctl.
///
/// # Safety
/// `argument` must point to the structure that the kernel reads and writes for `request`.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: usize, argument: *mut T) -> io::Result<usize> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    let result =
        unsafe { syscall(libc::SYS_ioctl, [fd.as_raw_fd() as usize, request, argument as usize, 0, 0, 0]) };
    Ok(result?)
}

/// Creates or removes the subvolume `name` in the directory `at`, by `request`.
fn subvolume_ioctl(
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
        // The structure's size must match the number of parents.
        let unused = if quota.group.is_none() { size_of::<u64>() } else { 0 };
        args.flags |= SUBVOL_QGROUP_INHERIT;
        args.inherit = [(size_of::<Inherit>() - unused) as u64, &raw mut inherit as u64, 0, 0];
    }
    // SAFETY: the structure is the kernel's, the name ends in a zero, and `inherit` lives until the end.
    unsafe { ioctl(at, request, &raw mut args) }.map(drop)
}

/// Creates an empty subvolume `name` in the directory `at`.
///
/// # Errors
/// It is not btrfs, there is no room, or the name is taken.
pub fn create_subvolume(at: BorrowedFd<'_>, name: &str, quota: Quota) -> io::Result<()> {
    subvolume_ioctl(SUBVOL_CREATE_V2, at, 0, 0, name.as_bytes(), quota)
}

/// Copies the open subvolume `source` to the subvolume `name` in the directory `at`. The copy is on the disk when it returns.
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
    subvolume_ioctl(SNAP_CREATE_V2, at, source.as_raw_fd().into(), flags, name.as_bytes(), quota)
}

/// Removes the subvolume `name` from the directory `at`; the kernel removes its content in the background.
///
/// # Errors
/// It is not a subvolume, or it contains other subvolumes.
pub fn destroy_subvolume(at: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    subvolume_ioctl(SNAP_DESTROY_V2, at, 0, 0, name.as_bytes(), Quota::default())
}

/// Removes the subvolume `id` of the file system that `at` is on.
///
/// # Errors
/// There is no such subvolume, or it contains other subvolumes.
pub fn destroy_subvolume_by_id(at: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args =
        VolumeArgs { fd: 0, transid: 0, flags: SUBVOL_BY_ID, inherit: [0; 4], name: [0; NAME_MAX + 1] };
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: the structure is the kernel's.
    unsafe { ioctl(at, SNAP_DESTROY_V2, &raw mut args) }.map(drop)
}

/// Returns the ids of the subvolumes directly inside the subvolume `id`, at most the first hundred or so.
///
/// # Errors
/// It is not btrfs.
pub fn nested_subvolumes(at: BorrowedFd<'_>, id: u64) -> io::Result<Vec<u64>> {
    /// `struct btrfs_ioctl_search_args`: the key, then room for the results.
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

/// Rewrites a part of a file with zstd compression where that makes it smaller. Readers see the same content at any moment. Blocks that
/// the file shared with others are its own afterwards. Returns when the part is compressed and its writeback has begun.
///
/// # Errors
/// It is not btrfs, there is no room, or the file is not open for writing.
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

/// Returns the subvolume that the open file or directory is in.
///
/// # Errors
/// It is not btrfs.
pub fn subvolume_of(file: BorrowedFd<'_>) -> io::Result<Subvolume> {
    const FLAGS: usize = 288;
    let mut info = [0u64; 504 / 8];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, GET_SUBVOL_INFO, info.as_mut_ptr()) }?;
    // BTRFS_ROOT_SUBVOL_RDONLY is a different bit from the flag at creation.
    Ok(Subvolume { id: info[0], read_only: info[FLAGS / 8] & 1 != 0 })
}

/// Returns the file system's UUID as `/sys/fs/btrfs` shows it.
///
/// # Errors
/// It is not btrfs.
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

/// Turns simple quotas on; the file system remembers it. Needs Linux 6.7.
///
/// # Errors
/// The kernel is older, or quotas of the other kind are on.
pub fn enable_simple_quotas(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = [QUOTA_ENABLE_SIMPLE, 0];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, QUOTA_CTL, args.as_mut_ptr()) }.map(drop)
}

/// Sets the size limit of the subvolume `id`; `None` removes it.
///
/// # Errors
/// Quotas are off, or there is no such subvolume.
pub fn limit_subvolume(file: BorrowedFd<'_>, id: u64, bytes: Option<u64>) -> io::Result<()> {
    set_limit(file, id, bytes)
}

/// Sets the size limit of all subvolumes in `group` together; `None` removes it.
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

/// Creates a group. Succeeds if it exists.
///
/// # Errors
/// Quotas are off.
pub fn create_group(file: BorrowedFd<'_>, group: QuotaGroup) -> io::Result<()> {
    let mut args = [1, group.id()];
    // SAFETY: the block has the size that the request's number names.
    match unsafe { ioctl(file, QGROUP_CREATE, args.as_mut_ptr()) } {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

/// Removes the quota group of the subvolume `id`, which was removed before.
///
/// # Errors
/// Something is still charged to it.
pub fn remove_subvolume_quota(file: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = [0, id];
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(file, QGROUP_CREATE, args.as_mut_ptr()) }.map(drop)
}

/// Grows a file system on one device to the device's size.
///
/// # Errors
/// It is not btrfs.
pub fn grow_to_device(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = [0u8; 4096];
    let what = b"1:max";
    // The first eight bytes are a descriptor that this request ignores.
    args[8..8 + what.len()].copy_from_slice(what);
    // SAFETY: the block has the size that the request's number names.
    unsafe { ioctl(root, RESIZE, args.as_mut_ptr()) }.map(drop)
}
