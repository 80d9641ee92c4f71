//! Prevents a btrfs image from filling the disk that contains it.
//! All trees are in one quota group. The group's limit is the size of all trees plus the free space of the disk, minus a reserve for
//! other programs and for the image's metadata. Other programs use the disk too, so the limit is updated twice a second.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::statvfs;
use sys::btrfs::{self, QuotaGroup};
use tracing::warn;

use super::MIB;
use super::charges::Charges;

/// The quota group of all trees.
pub(super) const GROUP: QuotaGroup = QuotaGroup(1);

/// Interval of updates: the kernel has no event for changes of free space.
const INTERVAL: Duration = Duration::from_millis(500);

/// A thread that updates the limit until this is dropped.
#[derive(Debug)]
pub(super) struct FreeSpaceLimit {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FreeSpaceLimit {
    /// Creates the group, sets its limit and starts the thread. `root` is the root directory of the image, `image` its file.
    pub(super) fn start(root: &Path, image: &Path) -> io::Result<Self> {
        let root = File::open(root)?;
        btrfs::create_group(root.as_fd(), GROUP)?;
        let counters = Charges::of(root.as_fd())?.ok_or(io::ErrorKind::Unsupported)?;
        let mut limiter =
            Limiter { root, counter: counters.of_group(GROUP), image: image.to_owned(), limit: None };
        limiter.update()?;
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            while stopped.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(error) = limiter.update() {
                    warn!(%error, "failed to update the limit of all writable trees from the disk's free space; they may fill the disk");
                }
            }
        };
        let thread = thread::Builder::new().name("trees".into()).spawn(work)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for FreeSpaceLimit {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Limiter {
    root: File,
    /// File with the number of bytes that all trees are charged for.
    counter: PathBuf,
    image: PathBuf,
    /// The limit that was set last.
    limit: Option<u64>,
}

impl Limiter {
    /// Sets the limit, if it changed noticeably.
    fn update(&mut self) -> io::Result<()> {
        // In this order: what is written between the two readings makes the limit too low until the next update, and not too high.
        let charged: u64 = fs::read_to_string(&self.counter)?.trim().parse().map_err(io::Error::other)?;
        let disk = statvfs(&self.image)?;
        let room = (disk.f_bavail * disk.f_frsize).saturating_sub(reserve(disk.f_blocks * disk.f_frsize));
        let limit = charged.saturating_add(room);
        // Each change costs a transaction, and what trees write changes both terms by the same amount.
        let tolerance = (room / 16).max(8 * MIB);
        if self.limit.is_none_or(|before| before.abs_diff(limit) > tolerance) {
            btrfs::limit_group(self.root.as_fd(), GROUP, Some(limit))?;
            self.limit = Some(limit);
        }
        Ok(())
    }
}

/// Returns how many bytes may be written to a directory on the same disk as an image without failing its trees: all but half of
/// the reserve.
///
/// # Errors
/// The directory does not exist.
pub fn room_beside(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok((disk.f_bavail * disk.f_frsize).saturating_sub(reserve(disk.f_blocks * disk.f_frsize) / 2))
}

/// Returns the number of bytes of a disk that trees leave free.
fn reserve(disk: u64) -> u64 {
    (disk / 20).clamp(128 * MIB, 4096 * MIB)
}
