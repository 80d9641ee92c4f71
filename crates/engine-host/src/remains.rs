//! What an earlier server of the same data directory may have left: control groups that nobody owns, files that nobody names.
//! One that cannot be removed must not keep the rest.
//! Which of them are somebody's, the caller says.

use std::fs;
use std::io;
use std::path::Path;

use engine::EngineError;
use tracing::{info, warn};

use crate::{Group, Hierarchies};

/// Ends and removes this server's control groups that are not kept; returns how many.
///
/// # Errors
/// They cannot be listed.
pub fn remove_groups(
    hierarchies: &Hierarchies,
    is_kept: impl Fn(&str) -> bool,
) -> Result<usize, EngineError> {
    let mut removed = 0;
    for name in hierarchies.groups().map_err(EngineError::kernel("list control groups"))? {
        if is_kept(&name) {
            continue;
        }
        info!(group = name, "removing a control group nobody owns");
        let ended = Group::create(hierarchies, &name).and_then(|group| {
            group.kill()?;
            group.remove()
        });
        match ended {
            Ok(()) => removed += 1,
            Err(error) => warn!(group = name, %error, "a control group nobody owns could not be removed"),
        }
    }
    Ok(removed)
}

/// Removes everything in a directory that has none of these names.
///
/// # Errors
/// The directory cannot be listed, or something in it stays.
pub fn remove_others(dir: &Path, names: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if names.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }?;
    }
    Ok(())
}
