//! Brings CRIU into a directory of its own: Debian's package and the libraries it needs, and nothing else of theirs.
//! From the first Debian release that has CRIU 4.2.
//! Whether what is there is fit is for the container engine to say.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::TemplateError;
use crate::mmdebstrap::Progress;
use crate::packages::{self, Packages};

/// Debian 14, which will stay on this or a newer version when it is released.
const PACKAGES: Packages = Packages { name: "criu", suite: "forky", packages: &["criu"] };
const PROGRAM: &str = "usr/sbin/criu";

/// Unpacks CRIU into `directory`, instead of what may be there. Blocks for some seconds.
///
/// # Errors
/// mmdebstrap is missing or fails; its last words are in the error.
pub fn install_criu(dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), TemplateError> {
    packages::install(&PACKAGES, dir, report, pick)
}

/// Takes the program and the libraries out of an unpacked tree: a tenth of it.
fn pick(from: &Path, to: &Path) -> Result<(), TemplateError> {
    let move_file = |path: &Path| {
        let target = to.join(path.strip_prefix(from).unwrap_or(path));
        let parent = target.parent().unwrap_or(to);
        fs::create_dir_all(parent).and_then(|()| fs::rename(path, &target)).map_err(TemplateError::at(path))
    };
    move_file(&from.join(PROGRAM))?;
    for dir in library_dirs(from)? {
        for entry in fs::read_dir(&dir).map_err(TemplateError::at(&dir))? {
            let path = entry.map_err(TemplateError::at(&dir))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")) {
                move_file(&path)?;
            }
        }
    }
    Ok(())
}

/// `usr/lib/<architecture>-linux-gnu`
fn library_dirs(tree: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let dir = tree.join("usr/lib");
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(&dir).and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
    let mut dirs = entries.map_err(TemplateError::at(&dir))?;
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
