//! Installs CRIU in a directory of its own: the program of Debian's package and the libraries it needs, without other files.
//! It comes from the first Debian release that has CRIU 4.2. The container engine checks whether an installed CRIU is usable.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::HostToolError;
use crate::mmdebstrap::Progress;
use crate::packages::{self, Packages};

/// Debian 14: CRIU 4.2 or newer.
const PACKAGES: Packages = Packages { name: "criu", suite: "forky", packages: &["criu"] };
const PROGRAM: &str = "usr/sbin/criu";

/// Installs CRIU in `dir`, replacing its content. Blocks for some seconds.
///
/// # Errors
/// mmdebstrap is missing or fails; its last lines of output are in the error.
pub fn install_criu(dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), HostToolError> {
    packages::install(&PACKAGES, dir, report, pick)
}

/// Moves the program and the libraries from the unpacked packages `from` to `to`: a tenth of all files.
fn pick(from: &Path, to: &Path) -> Result<(), HostToolError> {
    let move_file = |path: &Path| {
        let target = to.join(path.strip_prefix(from).unwrap_or(path));
        let parent = target.parent().unwrap_or(to);
        fs::create_dir_all(parent).and_then(|()| fs::rename(path, &target)).map_err(HostToolError::at(path))
    };
    move_file(&from.join(PROGRAM))?;
    for dir in library_dirs(from)? {
        for entry in fs::read_dir(&dir).map_err(HostToolError::at(&dir))? {
            let path = entry.map_err(HostToolError::at(&dir))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")) {
                move_file(&path)?;
            }
        }
    }
    Ok(())
}

/// Returns the directories `usr/lib/<architecture>-linux-gnu` of a tree.
fn library_dirs(tree: &Path) -> Result<Vec<PathBuf>, HostToolError> {
    let dir = tree.join("usr/lib");
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(&dir).and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
    let mut dirs = entries.map_err(HostToolError::at(&dir))?;
    dirs.retain(|path| path.is_dir() && path.to_string_lossy().ends_with("-linux-gnu"));
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_program_and_libraries_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let libraries = "usr/lib/x86_64-linux-gnu";
        let kept =
            [PROGRAM, "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"];
        let dropped =
            ["usr/lib/x86_64-linux-gnu/gconv/A.so", "usr/lib/python3/x.py", "usr/share/doc/criu/copyright"];
        for path in kept.iter().chain(&dropped) {
            let path = from.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("libc.so.6", from.join(libraries).join("libc.so")).unwrap();
        pick(&from, &to).unwrap();
        assert!(kept.iter().all(|path| to.join(path).is_file()));
        assert!(to.join(libraries).join("libc.so").is_file());
        assert!(dropped.iter().all(|path| !to.join(path).exists()));
    }
}
