//! Version 2: freezing and killing on every host, limits and accounting where it has the controllers.
//! Waits use the kernel's notifications and do not poll.
//! File names and units are the kernel's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use engine::{Resources, Stats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{CPU_PERIOD_USEC, parse_field, read_field, read_number};

const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
const BLOCKING_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

pub(super) fn limit(path: &Path, resources: &Resources) -> io::Result<()> {
    let quota = CPU_PERIOD_USEC * u64::from(resources.cpu_count);
    fs::write(path.join("cpu.max"), format!("{quota} {CPU_PERIOD_USEC}"))?;
    fs::write(path.join("memory.max"), (u64::from(resources.memory_mib) << 20).to_string())?;
    // Swap would let a sandbox use more memory than it was given; the file is missing without swap accounting.
    let _ = fs::write(path.join("memory.swap.max"), "0");
    fs::write(path.join("pids.max"), resources.pids.to_string())
}

pub(super) fn stats(path: &Path) -> io::Result<Stats> {
    let cache_bytes = read_field(&path.join("memory.stat"), "file")?;
    Ok(Stats {
        cpu_usec: read_field(&path.join("cpu.stat"), "usage_usec")?,
        memory_bytes: read_number(&path.join("memory.current"))?.saturating_sub(cache_bytes),
        cache_bytes,
        memory_limit_bytes: read_number(&path.join("memory.max"))?,
        pids: read_number(&path.join("pids.current"))?,
        ..Stats::default()
    })
}

pub(super) async fn set_frozen(path: &Path, frozen: bool) -> io::Result<()> {
    let wanted = u64::from(frozen);
    let watch = watch_events(path)?;
    fs::write(path.join("cgroup.freeze"), wanted.to_string())?;
    tokio::time::timeout(FREEZE_TIMEOUT, wait_for_event(&watch, "frozen", wanted))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

pub(super) async fn wait_until_empty(path: &Path) -> io::Result<()> {
    wait_for_event(&watch_events(path)?, "populated", 0).await
}

fn watch_events(path: &Path) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` keeps its descriptor open and the same for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(open_events(path)?, Interest::PRIORITY) }?)
}

async fn wait_for_event(watch: &AsyncFd<File>, key: &str, wanted: u64) -> io::Result<()> {
    while event(watch.get_ref(), key)? != wanted {
        watch.ready(Interest::PRIORITY).await?.clear_ready();
    }
    Ok(())
}

pub(super) fn kill(path: &Path) -> io::Result<()> {
    let file = open_events(path)?;
    fs::write(path.join("cgroup.kill"), "1")?;
    block_until(&file, "populated", 0)
}

pub(super) fn wait_frozen(path: &Path) -> io::Result<()> {
    block_until(&open_events(path)?, "frozen", 1)
}

fn block_until(file: &File, key: &str, wanted: u64) -> io::Result<()> {
    while event(file, key)? != wanted {
        let mut fds = [PollFd::new(file, PollFlags::PRI)];
        if poll(&mut fds, Some(&BLOCKING_TIMEOUT))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn open_events(path: &Path) -> io::Result<File> {
    File::open(path.join("cgroup.events"))
}

/// Reads a value from `cgroup.events` through the file that is being polled: the read tells the kernel which changes we have seen.
fn event(file: &File, key: &str) -> io::Result<u64> {
    let mut buffer = [0u8; 256];
    let length = file.read_at(&mut buffer, 0)?;
    Ok(parse_field(&String::from_utf8_lossy(&buffer[..length]), key))
}
