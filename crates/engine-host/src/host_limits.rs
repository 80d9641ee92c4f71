//! Limits of the host and of the server process that would otherwise be used up by a few sandboxes: raised when the server starts.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Kernel settings for the whole host, and the values below which they are raised. What they limit is memory of the sandbox that uses it, which has a
/// limit of its own; too low a total would let 16 sandboxes take all process ids or all terminals of the host. All pipes of a restored sandbox are made by
/// one user before they get their sizes: 1,024 pipes of a MiB, which is as many as can be captured, in pages.
const MIN_SETTINGS: [(&str, u64); 3] =
    [("kernel/pid_max", 4_194_304), ("kernel/pty/max", 1 << 20), ("fs/pipe-user-pages-soft", 1 << 18)];

/// With each process that is killed for memory the kernel lists every process of its control group in its log: a sandbox could fill the
/// log of the host with 20,000 lines every five seconds. Without the list a report has some 40 lines, and there are at most ten in that time.
const LIST_PROCESSES_AT_OOM: &str = "vm/oom_dump_tasks";

/// Raises the process's limit of open files as far as the kernel allows, and the host's limits of process ids, terminals and pipes, and
/// keeps the kernel from listing sandboxes' processes in its log.
///
/// # Errors
/// The limit of open files cannot be set. A kernel setting that cannot be changed is logged.
pub fn raise_host_limits() -> io::Result<()> {
    raise_open_files()?;
    for (name, wanted) in MIN_SETTINGS {
        report(name, wanted, change_setting(name, wanted, |before| before < wanted));
    }
    report(LIST_PROCESSES_AT_OOM, 0, change_setting(LIST_PROCESSES_AT_OOM, 0, |before| before != 0));
    Ok(())
}

fn report(name: &str, now: u64, changed: io::Result<Option<u64>>) {
    match changed {
        Ok(None) => {}
        Ok(Some(before)) => info!(setting = name, before, now, "changed a setting of the host"),
        Err(error) => warn!(setting = name, %error, "failed to change a setting of the host"),
    }
}

/// Raises soft and hard limit to `fs.nr_open`, which root may; otherwise the soft limit to the hard one.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = read_setting("fs/nr_open").ok().max(limit.maximum);
    if setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).is_ok() {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Returns the value before if it was changed.
fn change_setting(name: &str, wanted: u64, is_needed: impl FnOnce(u64) -> bool) -> io::Result<Option<u64>> {
    let before = read_setting(name)?;
    if !is_needed(before) {
        return Ok(None);
    }
    fs::write(setting_path(name), wanted.to_string())?;
    Ok(Some(before))
}

fn read_setting(name: &str) -> io::Result<u64> {
    fs::read_to_string(setting_path(name))?.trim().parse().map_err(io::Error::other)
}

fn setting_path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
