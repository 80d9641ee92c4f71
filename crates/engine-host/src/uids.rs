//! [`UidRanges`]: ranges of 65,536 user ids, one for each sandbox, so that no two sandboxes and no host user share an id.
//! A server takes a block of ranges by locking a file, so servers on one host never overlap.
//! Files on the disk are stored with the ids seen inside the sandbox (root is 0), so a range can be used again once its sandbox has
//! ended.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

/// Number of ids in a range: 0 to 65,535 inside the sandbox.
pub const RANGE_SIZE: u32 = 65_536;
/// Number of ranges in a block, and so the maximum number of sandboxes that one server can run at once.
const RANGES: u32 = 4096;
/// The first id of the first range.
pub const FIRST_ID: u32 = 1 << 28;
/// Number of blocks, and so the maximum number of servers on one host.
const BLOCKS: u32 = 14;

/// First of the ids that own user namespaces, one for each range. No process runs with them, and they are in no range.
const FIRST_OWNER: u32 = 1 << 27;

/// The id of processes that serve all sandboxes of a server and need no rights of root. It owns nothing.
pub const SERVING_ID: u32 = FIRST_OWNER - 1;

/// Returns the host id that owns the user namespace of the range that begins at `base`.
#[must_use]
pub fn namespace_owner(base: u32) -> u32 {
    FIRST_OWNER + (base - FIRST_ID) / RANGE_SIZE
}

/// One server's ranges of user ids.
#[derive(Debug)]
pub struct UidRanges {
    block: u32,
    used: Mutex<BTreeSet<u32>>,
    _lock: File,
}

impl UidRanges {
    /// Locks a block of ids. Prefers the block that this data directory used before, because its sandboxes may still run.
    ///
    /// # Errors
    /// Every block is taken, or a file cannot be written.
    pub fn open(lock_dir: &Path, data_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(lock_dir)?;
        let remembered = data_dir.join("uid-block");
        let before = fs::read_to_string(&remembered).ok().and_then(|text| text.trim().parse().ok());
        for block in before.into_iter().chain(0..BLOCKS).filter(|block| *block < BLOCKS) {
            let lock =
                File::options().create(true).append(true).open(lock_dir.join(format!("block-{block}")))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::write(&remembered, block.to_string())?;
                return Ok(Self { block, used: Mutex::default(), _lock: lock });
            }
        }
        Err(io::Error::other("every block of user ids is taken by another server on this host"))
    }

    /// Takes a free range and returns its first id on the host; `None` when every range is in use.
    pub fn take(&self) -> Option<u32> {
        let mut used = self.used.lock();
        let index = (0..RANGES).find(|index| !used.contains(index))?;
        used.insert(index);
        Some(self.base(index))
    }

    /// Marks the range that begins at `base` as in use, for a sandbox that an earlier server started.
    pub fn reserve(&self, base: u32) {
        if let Some(index) = self.index(base) {
            self.used.lock().insert(index);
        }
    }

    /// Whether the range that begins at `base` is in use.
    pub fn is_used(&self, base: u32) -> bool {
        self.index(base).is_some_and(|index| self.used.lock().contains(&index))
    }

    /// Gives a range back.
    pub fn release(&self, base: u32) {
        if let Some(index) = self.index(base) {
            self.used.lock().remove(&index);
        }
    }

    fn base(&self, index: u32) -> u32 {
        FIRST_ID + (self.block * RANGES + index) * RANGE_SIZE
    }

    fn index(&self, base: u32) -> Option<u32> {
        let index = (base.checked_sub(FIRST_ID)? / RANGE_SIZE).checked_sub(self.block * RANGES)?;
        (index < RANGES).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_never_share_a_range_and_a_restart_keeps_its_block() {
        let locks = tempfile::tempdir().unwrap();
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = UidRanges::open(locks.path(), one.path()).unwrap();
        let second = UidRanges::open(locks.path(), two.path()).unwrap();
        assert_ne!(first.take().unwrap(), second.take().unwrap());
        let base = second.take().unwrap();
        drop((first, second));
        let again = UidRanges::open(locks.path(), two.path()).unwrap();
        again.reserve(base);
        assert_ne!(again.take().unwrap(), base);
        assert_ne!(again.take().unwrap(), base);
    }

    #[test]
    fn the_last_range_fits_below_the_invalid_id() {
        let last = u64::from(FIRST_ID) + u64::from(BLOCKS) * u64::from(RANGES) * u64::from(RANGE_SIZE);
        assert!(last < u64::from(u32::MAX));
        const { assert!(FIRST_OWNER + BLOCKS * RANGES < FIRST_ID) };
        assert_ne!(namespace_owner(FIRST_ID), namespace_owner(FIRST_ID + RANGE_SIZE));
    }
}
