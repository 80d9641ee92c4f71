//! What trees are charged for, by btrfs simple quotas, and limits that mean the same before and after copies.
//! The kernel charges every block to the subvolume that wrote it, for as long as *any* subvolume refers to it. So a fresh copy is
//! charged for nothing, and a tree whose copy lives is charged for what it has replaced since. Neither is what a limit is about.
//!
//! Each tree with a limit therefore has a note (an attribute of its top directory, which sandboxes never see): its limit, and what
//! it refers to beyond what it is charged for, which is more than nothing after being copied, and less after being copied *from*.
//! The kernel's limit is the tree's minus that. A read-only copy cannot be written to, neither a note: the kernel's limit,
//! which it cannot reach, says what it refers to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use sys::btrfs::{self, QuotaGroup};
use tracing::debug;

use super::TreeUsage;
use crate::copy_tree::{measure, open_dir};

const NOTE: &str = "trusted.cofferdam.volume";

/// The kernel's counters.
#[derive(Debug)]
pub(super) struct Charges {
    /// `/sys/fs/btrfs/<uuid>/qgroups`
    counters: PathBuf,
}

/// What is known of a tree besides the kernel's count. A copy has its source's until it gets its own, so it says whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    id: u64,
    limit: Option<u64>,
    /// Bytes referred to, less bytes charged for.
    beyond: i64,
}

/// Writes the first note of a new, empty tree.
pub(super) fn begin(tree: BorrowedFd<'_>, limit: Option<u64>) -> io::Result<()> {
    Note { id: btrfs::subvolume_of(tree)?.id, limit, beyond: 0 }.write(tree)
}

impl Note {
    /// None where the tree has no note of its own.
    fn read(tree: BorrowedFd<'_>, id: u64) -> io::Result<Option<Self>> {
        let mut text = [0u8; 64];
        let length = match fgetxattr(tree, NOTE, &mut text) {
            Err(Errno::NODATA) => return Ok(Some(Self { id, limit: None, beyond: 0 })),
            answer => answer?,
        };
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        let mut words = text.split(' ').map(str::parse::<i64>);
        let (Some(Ok(owner)), Some(Ok(limit)), Some(Ok(beyond))) = (words.next(), words.next(), words.next())
        else {
            return Ok(None);
        };
        let note = Self { id, limit: u64::try_from(limit).ok(), beyond };
        Ok(Some(note).filter(|_| u64::try_from(owner) == Ok(id)))
    }

    fn write(self, tree: BorrowedFd<'_>) -> io::Result<()> {
        let limit = self.limit.map_or(-1, signed);
        let text = format!("{} {limit} {}", self.id, self.beyond);
        Ok(fsetxattr(tree, NOTE, text.as_bytes(), XattrFlags::empty())?)
    }

    /// Writes the note and gives the kernel the limit that follows from it, the latter even if the former fails.
    fn apply(self, tree: BorrowedFd<'_>) -> io::Result<()> {
        // At its limit a tree has no room for a note, so first the limit goes.
        btrfs::limit_subvolume(tree, self.id, None)?;
        let noted = self.write(tree);
        let charge = |limit| signed(limit).saturating_sub(self.beyond).max(0).unsigned_abs();
        btrfs::limit_subvolume(tree, self.id, self.limit.map(charge))?;
        noted
    }
}

impl Charges {
    /// None where quotas are off.
    pub(super) fn of(root: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let counters = Path::new("/sys/fs/btrfs").join(btrfs::filesystem_uuid(root)?).join("qgroups");
        Ok(counters.is_dir().then_some(Self { counters }))
    }

    /// The file that says what a group is charged for.
    pub(super) fn of_group(&self, group: QuotaGroup) -> PathBuf {
        self.counters.join(format!("1_{}", group.0)).join("referenced")
    }

    fn counter(&self, id: u64, which: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.counters.join(format!("0_{id}")).join(which))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Forgets the counters of trees that are gone and have nothing left that others refer to; newer kernels do so by
    /// themselves. A live one is charged for its top directory at least.
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
                Ok(()) => debug!(id, "a counter without a tree is removed"),
                Err(error) => debug!(id, %error, "a counter without a tree stays"),
            }
        }
    }

    /// Gives a fresh copy its account, and its source a new one.
    pub(super) fn copied(&self, source: &OwnedFd, copy: &OwnedFd, limit: Option<u64>) -> io::Result<()> {
        let (from, to) = (btrfs::subvolume_of(source.as_fd())?, btrfs::subvolume_of(copy.as_fd())?);
        let note = if from.read_only { None } else { Note::read(source.as_fd(), from.id)? };
        let charged = self.counter(from.id, "referenced")?;
        let tightest = limit.into_iter().chain(note.and_then(|note| note.limit)).min();
        let size = match self.estimate(from, note, charged) {
            // An estimate may be too high by what was replaced since the last copy; near a limit that would hurt.
            Some(size) if tightest.is_none_or(|limit| size < limit / 4 * 3) => size,
            _ => measure(open_dir(copy, c".")?)?.bytes,
        };
        if to.read_only {
            btrfs::limit_subvolume(copy.as_fd(), to.id, Some(size))?;
        } else {
            let beyond = signed(size) - signed(self.counter(to.id, "referenced")?);
            Note { id: to.id, limit, beyond }.apply(copy.as_fd())?;
        }
        if from.read_only {
            return Ok(());
        }
        let limit = note.and_then(|note| note.limit);
        match (Note { id: from.id, limit, beyond: signed(size) - signed(charged) }).apply(source.as_fd()) {
            // No room in all of the image. The copy matters more, and its source only counts too much.
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Ok(()),
            answer => answer,
        }
    }

    /// What a tree refers to, if that is known without looking at its files.
    fn estimate(&self, tree: btrfs::Subvolume, note: Option<Note>, charged: u64) -> Option<u64> {
        if tree.read_only {
            // "No limit" is the largest number.
            return self.counter(tree.id, "max_referenced").ok().filter(|size| (1..u64::MAX).contains(size));
        }
        Some((signed(charged) + note?.beyond).max(0).unsigned_abs())
    }

    pub(super) fn set_limit(&self, tree: &OwnedFd, limit: Option<u64>) -> io::Result<()> {
        let own = btrfs::subvolume_of(tree.as_fd())?;
        if own.read_only {
            return Ok(());
        }
        let note = Note::read(tree.as_fd(), own.id)?;
        let beyond = match note {
            Some(note) => note.beyond,
            None => {
                signed(measure(open_dir(tree, c".")?)?.bytes) - signed(self.counter(own.id, "referenced")?)
            }
        };
        Note { id: own.id, limit, beyond }.apply(tree.as_fd())
    }

    pub(super) fn usage(&self, tree: &OwnedFd) -> io::Result<TreeUsage> {
        let own = btrfs::subvolume_of(tree.as_fd())?;
        let note = if own.read_only { None } else { Note::read(tree.as_fd(), own.id)? };
        let charged = self.counter(own.id, "referenced")?;
        let used = match self.estimate(own, note, charged) {
            Some(used) => used,
            None => measure(open_dir(tree, c".")?)?.bytes,
        };
        Ok(TreeUsage { used, limit: note.and_then(|note| note.limit) })
    }
}

/// Sizes fit: no disk has 8 EiB.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
