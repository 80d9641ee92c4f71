//! Control groups of sandboxes: limits, freezing, accounting, and the list of what must be ended.
//! Version 2 does everything where it has the controllers; on hybrid hosts the limits come from version 1
//! and version 2 still freezes and kills. Names tie a group to its server, so a sweeper knows its own.

mod hierarchy;
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

/// The group of one sandbox, in every hierarchy in use.
#[derive(Debug)]
pub struct Group {
    name: String,
    unified: PathBuf,
    unified_fd: OwnedFd,
    v1: Vec<(v1::Controller, PathBuf)>,
}

impl Group {
    /// Makes the group's directories.
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
    pub fn open(hierarchies: &Hierarchies, name: &str) -> io::Result<Self> {
        let unified = hierarchies.unified.join(name);
        let unified_fd = open(&unified, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let v1 = hierarchies.v1.iter().map(|(kind, root)| (*kind, root.join(name))).collect();
        Ok(Self { name: name.to_owned(), unified, unified_fd, v1 })
    }

    /// The group's name, unique within this server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory in version 2.
    pub fn unified_path(&self) -> &Path {
        &self.unified
    }

    /// For `CLONE_INTO_CGROUP`.
    pub fn unified_fd(&self) -> BorrowedFd<'_> {
        self.unified_fd.as_fd()
    }

    /// What a thread needs to move itself in.
    pub fn entrance(&self) -> Entrance {
        Entrance(self.v1.iter().map(|(_, path)| path.join("tasks")).collect())
    }

    /// Files through which a process that writes `0` joins the group in every hierarchy.
    #[must_use]
    pub fn gates(&self) -> Vec<PathBuf> {
        let v1 = self.v1.iter().map(|(_, path)| path.join("cgroup.procs"));
        v1.chain([self.unified.join("cgroup.procs")]).collect()
    }

    /// Sets the limits.
    pub fn limit(&self, resources: &Resources) -> io::Result<()> {
        if self.v1.is_empty() {
            return v2::limit(&self.unified, resources);
        }
        self.v1.iter().try_for_each(|(kind, path)| kind.limit(path, resources))
    }

    /// Stops or continues every process and waits until the kernel says so.
    pub async fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        v2::set_frozen(&self.unified, frozen).await
    }

    /// Whether every process is stopped by [`Group::set_frozen`].
    pub fn is_frozen(&self) -> io::Result<bool> {
        Ok(read_number(&self.unified.join("cgroup.freeze"))? == 1)
    }

    /// Lets every process continue, without waiting for it.
    pub fn thaw_now(&self) -> io::Result<()> {
        fs::write(self.unified.join("cgroup.freeze"), "0")
    }

    /// What the group uses now.
    pub fn stats(&self) -> io::Result<Stats> {
        if self.v1.is_empty() {
            return v2::stats(&self.unified);
        }
        let mut stats = Stats::default();
        self.v1.iter().try_for_each(|(kind, path)| kind.add_stats(path, &mut stats))?;
        Ok(stats)
    }

    /// Ends every process in the group and waits until none is left.
    pub fn kill(&self) -> io::Result<()> {
        v2::kill(&self.unified)
    }

    /// Removes the empty group.
    pub fn remove(&self) -> io::Result<()> {
        let dirs = self.v1.iter().map(|(_, path)| path).chain([&self.unified]);
        dirs.map(|path| remove_dir(path)).fold(Ok(()), io::Result::and)
    }
}

/// The way into a group's version 1 hierarchies, for one thread.
#[derive(Debug)]
pub struct Entrance(Vec<PathBuf>);

impl Entrance {
    /// Moves the calling thread in, so that what it clones is born there.
    /// Slow when the machine is idle (it waits for RCU): never on the create path.
    pub fn enter(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|tasks| fs::write(tasks, "0"))
    }
}

/// A thread is still counted for a moment after whoever joined it was told that it has ended, and the kernel has no
/// event for the moment after: so a busy group is tried again, for a bounded time.
fn remove_dir(path: &Path) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::park_timeout(PAUSE);
            }
            answer => return answer,
        }
    }
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    Ok(text.trim().parse().unwrap_or(u64::MAX))
}

/// The value of `key` in a file of `key value` lines; 0 when it is not there.
fn read_field(path: &Path, key: &str) -> io::Result<u64> {
    Ok(parse_field(&fs::read_to_string(path)?, key))
}

fn parse_field(text: &str, key: &str) -> u64 {
    let mut values =
        text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    values.next().unwrap_or(0)
}
