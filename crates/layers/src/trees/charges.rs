//! Limits and sizes of trees by btrfs simple quotas, corrected so that they mean the same before and after copies.
//! The kernel charges every block to the subvolume that wrote it, for as long as *any* subvolume refers to the block. So a fresh copy
//! is charged for nothing, and a tree that was copied stays charged for content that it has replaced since. A limit must apply to the
//! size of a tree's content instead.
//!
//! Each tree with a limit therefore has an accounting record, an extended attribute of its top directory that sandboxes never see. The
//! record contains the tree's limit and its uncharged bytes: content size − charged size, positive for a copy, negative for a source.
//! The kernel's limit is: tree limit − (content size − charged size).
//! A read-only copy cannot have a record. Its size is stored as the kernel's limit, which has no effect on a read-only tree.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use sys::btrfs::{self, QuotaGroup};
use tracing::debug;

use super::TreeUsage;
use crate::copy_tree::measure;
use walk::open_dir;

const RECORD_ATTRIBUTE: &str = "trusted.cofferdam.volume";

/// The kernel's quota counters.
#[derive(Debug)]
pub(super) struct Charges {
    /// `/sys/fs/btrfs/<uuid>/qgroups`
    counters: PathBuf,
}

/// The accounting record of a tree. It contains the tree's id, because a fresh copy still has the record of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    id: u64,
    limit: Option<u64>,
    /// Size of the tree's content minus the size that the tree is charged for; negative for the source of a copy.
    uncharged_bytes: i64,
}

/// Writes the first accounting record of a new, empty tree.
pub(super) fn begin(tree: BorrowedFd<'_>, limit: Option<u64>) -> io::Result<()> {
    Record { id: btrfs::subvolume_of(tree)?.id, limit, uncharged_bytes: 0 }.write(tree)
}

impl Record {
    /// Reads the record of a tree; `None` if the tree has none of its own.
    fn read(tree: BorrowedFd<'_>, id: u64) -> io::Result<Option<Self>> {
        let mut text = [0u8; 64];
        let length = match fgetxattr(tree, RECORD_ATTRIBUTE, &mut text) {
            Err(Errno::NODATA) => return Ok(Some(Self { id, limit: None, uncharged_bytes: 0 })),
            answer => answer?,
        };
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        let mut words = text.split(' ').map(str::parse::<i64>);
        let (Some(Ok(owner)), Some(Ok(limit)), Some(Ok(uncharged_bytes))) =
            (words.next(), words.next(), words.next())
        else {
            return Ok(None);
        };
        let record = Self { id, limit: u64::try_from(limit).ok(), uncharged_bytes };
        Ok(Some(record).filter(|_| u64::try_from(owner) == Ok(id)))
    }

    fn write(self, tree: BorrowedFd<'_>) -> io::Result<()> {
        let limit = self.limit.map_or(-1, signed);
        let text = format!("{} {limit} {}", self.id, self.uncharged_bytes);
        Ok(fsetxattr(tree, RECORD_ATTRIBUTE, text.as_bytes(), XattrFlags::empty())?)
    }

    /// Writes the record and sets the kernel's limit accordingly. The limit is set even if the record cannot be written.
    fn apply(self, tree: BorrowedFd<'_>) -> io::Result<()> {
        // A tree that has reached its limit has no room for the record, so the limit is removed first.
        btrfs::limit_subvolume(tree, self.id, None)?;
        let written = self.write(tree);
        let charge = |limit| signed(limit).saturating_sub(self.uncharged_bytes).max(0).unsigned_abs();
        btrfs::limit_subvolume(tree, self.id, self.limit.map(charge))?;
        written
    }
}

impl Charges {
    /// Opens the counters of a file system; `None` if quotas are off.
    pub(super) fn of(root: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let counters = Path::new("/sys/fs/btrfs").join(btrfs::filesystem_uuid(root)?).join("qgroups");
        Ok(counters.is_dir().then_some(Self { counters }))
    }

    /// Returns the file with the number of bytes that a group is charged for.
    pub(super) fn of_group(&self, group: QuotaGroup) -> PathBuf {
        self.counters.join(format!("1_{}", group.0)).join("referenced")
    }

    fn counter(&self, id: u64, which: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.counters.join(format!("0_{id}")).join(which))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Removes the counters of removed trees whose content no other tree refers to; newer kernels do so themselves. Counters of
    /// existing trees are never zero: they include the top directory.
    pub(super) fn sweep(&self, root: BorrowedFd<'_>) {
        let Ok(entries) = fs::read_dir(&self.counters) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("0_")).and_then(|id| id.parse().ok());
            let Some(id) = id.filter(|id| self.counter(*id, "referenced").is_ok_and(|bytes| bytes == 0))
            else {
                continue;
            };
            match btrfs::remove_subvolume_quota(root, id) {
                Ok(()) => debug!(id, "removed the quota counter of a removed tree"),
                Err(error) => debug!(id, %error, "failed to remove the quota counter of a removed tree"),
            }
        }
    }

    /// Writes the record of a fresh copy, and a new record for its source.
    pub(super) fn copied(&self, source: &OwnedFd, copy: &OwnedFd, limit: Option<u64>) -> io::Result<()> {
        let (from, to) = (btrfs::subvolume_of(source.as_fd())?, btrfs::subvolume_of(copy.as_fd())?);
        let record = if from.read_only { None } else { Record::read(source.as_fd(), from.id)? };
        let charged = self.counter(from.id, "referenced")?;
        let tightest = limit.into_iter().chain(record.and_then(|record| record.limit)).min();
        let size = match self.estimate(from, record, charged) {
            // The estimate still counts content that was replaced since the last copy, which matters near a limit.
            Some(size) if tightest.is_none_or(|limit| size < limit / 4 * 3) => size,
            _ => measure(open_dir(copy, c".")?)?.bytes,
        };
        if to.read_only {
            btrfs::limit_subvolume(copy.as_fd(), to.id, Some(size))?;
        } else {
            let uncharged_bytes = signed(size) - signed(self.counter(to.id, "referenced")?);
            Record { id: to.id, limit, uncharged_bytes }.apply(copy.as_fd())?;
        }
        if from.read_only {
            return Ok(());
        }
        let limit = record.and_then(|record| record.limit);
        match (Record { id: from.id, limit, uncharged_bytes: signed(size) - signed(charged) })
            .apply(source.as_fd())
        {
            // The image is full. The copy is kept nevertheless; the size of its source is merely overestimated.
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Ok(()),
            answer => answer,
        }
    }

    /// Returns the size of a tree, if it is known without reading the metadata of its files.
    fn estimate(&self, tree: btrfs::Subvolume, record: Option<Record>, charged: u64) -> Option<u64> {
        if tree.read_only {
            // "No limit" is the maximum number.
            return self.counter(tree.id, "max_referenced").ok().filter(|size| (1..u64::MAX).contains(size));
        }
        Some((signed(charged) + record?.uncharged_bytes).max(0).unsigned_abs())
    }

    pub(super) fn set_limit(&self, tree: &OwnedFd, limit: Option<u64>) -> io::Result<()> {
        let own = btrfs::subvolume_of(tree.as_fd())?;
        if own.read_only {
            return Ok(());
        }
        let record = Record::read(tree.as_fd(), own.id)?;
        let uncharged_bytes = match record {
            Some(record) => record.uncharged_bytes,
            None => {
                signed(measure(open_dir(tree, c".")?)?.bytes) - signed(self.counter(own.id, "referenced")?)
            }
        };
        Record { id: own.id, limit, uncharged_bytes }.apply(tree.as_fd())
    }

    pub(super) fn usage(&self, tree: &OwnedFd) -> io::Result<TreeUsage> {
        let own = btrfs::subvolume_of(tree.as_fd())?;
        let record = if own.read_only { None } else { Record::read(tree.as_fd(), own.id)? };
        let charged = self.counter(own.id, "referenced")?;
        let used = match self.estimate(own, record, charged) {
            Some(used) => used,
            None => measure(open_dir(tree, c".")?)?.bytes,
        };
        Ok(TreeUsage { used, limit: record.and_then(|record| record.limit) })
    }
}

/// Converts a size, which fits: no disk has 8 EiB.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
