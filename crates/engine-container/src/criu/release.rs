//! Holding restored processes while CRIU releases them thread by thread. CRIU fails when a thread is gone that it has yet to release, and
//! the threads that it has released could end their process.

use std::fs;
use std::io;
use std::path::Path;

/// Freezes the processes of the version 2 control group `cgroup`, after CRIU itself was moved to the server's. They stay stopped when CRIU
/// releases them.
///
/// # Errors
/// The kernel refused.
pub(super) fn hold(cgroup: &Path, criu: i32, server_group: &Path) -> io::Result<()> {
    fs::write(server_group.join("cgroup.procs"), criu.to_string())?;
    fs::write(cgroup.join("cgroup.freeze"), "1")
}

/// Lets them run, all at once.
///
/// # Errors
/// The kernel refused.
pub(super) fn let_run(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.freeze"), "0")
}
