//! Keeps an image from filling the disk it lies on.
//! All trees are in one quota group, whose limit is what they have plus what the disk has left, less a reserve for the rest of
//! the machine and for the image's own books. Other programs use the disk too, so the limit is set anew every other second.

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

/// The group of all trees.
pub(super) const GROUP: QuotaGroup = QuotaGroup(1);

/// Space changes without an event.
const INTERVAL: Duration = Duration::from_secs(2);

/// Sets the limit until it is dropped.
#[derive(Debug)]
pub(super) struct FreeSpaceLimit {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FreeSpaceLimit {
    /// `root` is the image's, `image` its file.
    pub(super) fn start(root: &Path, image: &Path) -> io::Result<Self> {
        let root = File::open(root)?;
        btrfs::create_group(root.as_fd(), GROUP)?;
        let counters = Charges::of(root.as_fd())?.ok_or(io::ErrorKind::Unsupported)?;
        let mut limiter =
            Limiter { root, counter: counters.of_group(GROUP), image: image.to_owned(), limit: None };
        limiter.look()?;
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            while stopped.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(error) = limiter.look() {
                    warn!(%error, "trees may outgrow the disk: its free space cannot be watched");
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
    /// How many bytes all trees are charged for.
    counter: PathBuf,
    image: PathBuf,
    /// Set last.
    limit: Option<u64>,
}

impl Limiter {
    fn look(&mut self) -> io::Result<()> {
        let disk = statvfs(&self.image)?;
        let room = (disk.f_bavail * disk.f_frsize).saturating_sub(reserve(disk.f_blocks * disk.f_frsize));
        let charged: u64 = fs::read_to_string(&self.counter)?.trim().parse().map_err(io::Error::other)?;
        let limit = charged.saturating_add(room);
        // Each change is a transaction, and mostly space only moves from one term to the other.
        let tolerance = (room / 16).max(8 * MIB);
        if self.limit.is_none_or(|before| before.abs_diff(limit) > tolerance) {
            btrfs::limit_group(self.root.as_fd(), GROUP, Some(limit))?;
            self.limit = Some(limit);
        }
        Ok(())
    }
}

/// Bytes that may be written beside an image into a directory of the disk it lies on: half of what trees leave stays free.
///
/// # Errors
/// The directory is not there.
pub fn room_beside(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok((disk.f_bavail * disk.f_frsize).saturating_sub(reserve(disk.f_blocks * disk.f_frsize) / 2))
}

/// What is left to the rest of the machine.
fn reserve(disk: u64) -> u64 {
    (disk / 20).clamp(128 * MIB, 4096 * MIB)
}
