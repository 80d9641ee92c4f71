//! [`Group`]: the control group of a sandbox, for limits, freezing, accounting and killing.
//! Version 2 does everything where it has the controllers; on hybrid hosts the limits are set in version 1, and version 2 freezes
//! and kills. All groups of a server are in directories named after it, so that its sweep never touches another server's.

mod hierarchy;
mod total;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::{Resources, Stats};
use rustix::fs::{Mode, OFlags, open};

pub use hierarchy::Hierarchies;
pub use total::{HostTotals, Reserve};
pub use v1::Controller;

/// Short, because a sandbox that has used up its share is stopped until the next period, and envd with it.
const CPU_PERIOD_USEC: u64 = 20_000;

/// The control group of one sandbox, in every hierarchy in use.
#[derive(Debug)]
pub struct Group {
    name: String,
    unified: PathBuf,
    unified_fd: OwnedFd,
    v1: Vec<(v1::Controller, PathBuf)>,
}

impl Group {
    /// Creates the group, or opens it if it exists.
    ///
    /// # Errors
    /// A directory cannot be created.
    pub fn create(hierarchies: &Hierarchies, name: &str) -> io::Result<Self> {
        for root in hierarchies.instance_roots() {
            match fs::create_dir(root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Self::open(hierarchies, name)
    }

    /// Opens a group that exists.
    ///
    /// # Errors
    /// There is no such group.
    pub fn open(hierarchies: &Hierarchies, name: &str) -> io::Result<Self> {
        let unified = hierarchies.unified.join(name);
        let unified_fd = open(&unified, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let v1 = hierarchies.v1.iter().map(|(kind, root)| (*kind, root.join(name))).collect();
        Ok(Self { name: name.to_owned(), unified, unified_fd, v1 })
    }

    /// Returns the group's name, unique within this server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the group's directory in version 2.
    pub fn unified_path(&self) -> &Path {
        &self.unified
    }

    /// Returns the open directory in version 2, for `CLONE_INTO_CGROUP`.
    pub fn unified_fd(&self) -> BorrowedFd<'_> {
        self.unified_fd.as_fd()
    }

    /// Returns what a thread needs to move itself into the version 1 hierarchies.
    pub fn entrance(&self) -> GroupEntrance {
        GroupEntrance(self.v1.iter().map(|(_, path)| path.join("tasks")).collect())
    }

    /// Returns the files to which a process writes `0` to join the group in every hierarchy.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let v1 = self.v1.iter().map(|(_, path)| path.join("cgroup.procs"));
        v1.chain([self.unified.join("cgroup.procs")]).collect()
    }

    /// Sets the limits on processors, memory and processes.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn limit(&self, resources: &Resources) -> io::Result<()> {
        if self.v1.is_empty() {
            return v2::limit(&self.unified, resources);
        }
        self.v1.iter().try_for_each(|(kind, path)| kind.limit(path, resources))
    }

    /// Freezes or thaws every process and waits until the kernel confirms it.
    ///
    /// # Errors
    /// `TimedOut` when the kernel does not confirm it in time.
    pub async fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        v2::set_frozen(&self.unified, frozen).await
    }

    /// Whether the group was frozen by [`Group::set_frozen`].
    ///
    /// # Errors
    /// The group cannot be read.
    pub fn is_frozen(&self) -> io::Result<bool> {
        Ok(read_number(&self.unified.join("cgroup.freeze"))? == 1)
    }

    /// Waits until every process is frozen again after some were made to run. Blocks.
    ///
    /// # Errors
    /// `TimedOut` when the kernel does not confirm it in time.
    pub fn wait_frozen(&self) -> io::Result<()> {
        v2::wait_frozen(&self.unified)
    }

    /// Freezes every process and waits until the kernel confirms it. Blocks.
    ///
    /// # Errors
    /// `TimedOut` when the kernel does not confirm it in time.
    pub fn freeze_now(&self) -> io::Result<()> {
        fs::write(self.unified.join("cgroup.freeze"), "1")?;
        self.wait_frozen()
    }

    /// Thaws every process without waiting for the kernel's confirmation.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw_now(&self) -> io::Result<()> {
        fs::write(self.unified.join("cgroup.freeze"), "0")
    }

    /// Returns what the group uses now.
    ///
    /// # Errors
    /// The group cannot be read.
    pub fn stats(&self) -> io::Result<Stats> {
        if self.v1.is_empty() {
            return v2::stats(&self.unified);
        }
        let mut stats = Stats::default();
        self.v1.iter().try_for_each(|(kind, path)| kind.add_stats(path, &mut stats))?;
        Ok(stats)
    }

    /// Kills every process in the group and waits until none is left. Blocks.
    ///
    /// # Errors
    /// `TimedOut` when a process does not die.
    pub fn kill(&self) -> io::Result<()> {
        v2::kill(&self.unified)
    }

    /// Waits until no process is in the group, however long.
    ///
    /// # Errors
    /// The group cannot be read.
    pub async fn wait_until_empty(&self) -> io::Result<()> {
        v2::wait_until_empty(&self.unified).await
    }

    /// Removes the empty group. Succeeds if it does not exist. Blocks.
    ///
    /// # Errors
    /// A process is still in it.
    pub fn remove(&self) -> io::Result<()> {
        let dirs = self.v1.iter().map(|(_, path)| path).chain([&self.unified]);
        dirs.map(|path| remove_dir(path)).fold(Ok(()), io::Result::and)
    }
}

/// The files through which a thread joins a group in the version 1 hierarchies.
#[derive(Debug)]
pub struct GroupEntrance(Vec<PathBuf>);

impl GroupEntrance {
    /// Moves the calling thread into the group, so that the processes it clones are born there.
    /// Slow on an idle host, because it waits for RCU, so never on the path of a create.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|tasks| fs::write(tasks, "0"))
    }
}

/// Removes a group's directory. A thread is still counted for a moment after it has been joined, and the kernel has no event for the
/// end of that, so a busy group is tried again for a limited time.
fn remove_dir(path: &Path) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::park_timeout(PAUSE);
            }
            result => return result,
        }
    }
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    Ok(text.trim().parse().unwrap_or(u64::MAX))
}

/// Returns the value of `key` in a file of `key value` lines; 0 when it is not there.
fn read_field(path: &Path, key: &str) -> io::Result<u64> {
    Ok(parse_field(&fs::read_to_string(path)?, key))
}

fn parse_field(text: &str, key: &str) -> u64 {
    let mut values =
        text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    values.next().unwrap_or(0)
}
