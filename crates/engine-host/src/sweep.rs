//! Sweeps control groups and files that an earlier server with the same data directory left over.
//! The caller names the ones to keep. If a group cannot be removed, the sweep goes on with the next one.

use std::fs;
use std::io;
use std::path::Path;

use engine::EngineError;
use tracing::{info, warn};

use crate::host_lease::uid_base_of;
use crate::{Group, Hierarchies, HostResources};

impl HostResources {
    /// Whether this process holds a lease on the group.
    #[must_use]
    pub fn is_group_in_use(&self, group: &str) -> bool {
        uid_base_of(group).is_some_and(|base| self.uids.is_used(base))
    }
}

/// Kills the processes of this server's control groups for which `is_kept` returns false, and removes these groups. Returns how many
/// were removed; failures are logged.
///
/// # Errors
/// The groups cannot be listed.
pub fn remove_stale_groups(
    hierarchies: &Hierarchies,
    is_kept: impl Fn(&str) -> bool,
) -> Result<usize, EngineError> {
    let mut removed = 0;
    for name in hierarchies.groups().map_err(EngineError::kernel("list control groups"))? {
        if is_kept(&name) {
            continue;
        }
        info!(group = name, "removing a stale control group");
        let ended = Group::create(hierarchies, &name).and_then(|group| {
            group.kill()?;
            group.remove()
        });
        match ended {
            Ok(()) => removed += 1,
            Err(error) => warn!(group = name, %error, "failed to remove a stale control group"),
        }
    }
    Ok(removed)
}

/// Removes every file and directory in `dir` whose name is not in `kept`.
///
/// # Errors
/// The directory cannot be listed, or something in it cannot be removed.
pub fn remove_unlisted(dir: &Path, kept: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if kept.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }?;
    }
    Ok(())
}
