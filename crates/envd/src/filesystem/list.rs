//! Lists a directory to a depth: depth first, ordered by the bytes of the names.
//! Symbolic links below are listed but not followed. Entries that vanish meanwhile are left out, and so is what is in
//! directories below that the user may not read, or has a longer path than any call could name.

use std::io;
use std::path::{Path, PathBuf};

use envd_api::filesystem::EntryInfo;
use rustix::io::Errno;

use crate::filesystem::entry;
use crate::users::Names;

/// Lists the entries below `root`. Their paths begin with `root` as it is written.
pub fn list(root: &Path, depth: u32, names: &Names) -> io::Result<Vec<EntryInfo>> {
    let mut entries = Vec::new();
    // Each level's remaining names, last first: no recursion, however deep the tree.
    let mut levels = vec![children(root)?];
    while let Some(level) = levels.last_mut() {
        let Some(path) = level.pop() else {
            levels.pop();
            continue;
        };
        let depth_now = levels.len();
        let entry = match entry::describe(&path, names) {
            Ok(entry) => entry,
            Err(error) if is_left_out(&error, depth_now) => continue,
            Err(error) => return Err(error),
        };
        let enter = !entry.is_symlink && entry.permissions.starts_with('d') && levels.len() < depth as usize;
        entries.push(entry);
        if enter {
            match children(&path) {
                Ok(level) => levels.push(level),
                Err(error) if is_left_out(&error, depth_now + 1) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(entries)
}

/// Whether an entry that cannot be described or read is left out, instead of failing the list.
fn is_left_out(error: &io::Error, depth: usize) -> bool {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    let has_no_path = Errno::from_io_error(error) == Some(Errno::NAMETOOLONG);
    error.kind() == io::ErrorKind::NotFound || has_no_path || is_denied && depth > 1
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = std::fs::read_dir(dir)?.map(|child| Ok(child?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort_unstable_by(|a, b| b.as_os_str().cmp(a.as_os_str()));
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_depth_first_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b/x", "a/y/z"] {
            std::fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        std::fs::write(dir.path().join("c"), "").expect("written");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).expect("linked");
        let listed = |depth| -> Vec<String> {
            let entries = list(dir.path(), depth, &Names::default()).expect("listed");
            let root = format!("{}/", dir.path().display());
            entries.iter().map(|e| e.path.replace(&root, "")).collect()
        };
        assert_eq!(listed(1), ["a", "b", "c", "loop"]);
        assert_eq!(listed(2), ["a", "a/y", "b", "b/x", "c", "loop"]);
        assert_eq!(listed(9), ["a", "a/y", "a/y/z", "b", "b/x", "c", "loop"]);
    }
}
