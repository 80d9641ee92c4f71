//! Resolves paths of requests to absolute paths.
//! An empty path is the default directory, `~` the user's home, and other relative paths start at the home.
//! The result contains no `.`, no `..` and no doubled slash; symbolic links are not resolved.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Why a path cannot be resolved.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// `~name/…`.
    #[error("cannot expand user-specific home dir")]
    OtherHome,
    /// A NUL byte, which no path can contain.
    #[error("invalid path: contains a NUL byte")]
    Nul,
    /// Longer than the kernel allows, in total or in one name.
    #[error("invalid path: too long")]
    TooLong,
}

/// Maximum size of a path, bytes, with the final NUL.
const MAX_PATH: usize = 4096;
/// Maximum size of a name, bytes.
const MAX_NAME: usize = 255;

/// Resolves `path` for a user with the home directory `home`. An empty path resolves to `workdir`, if that is set.
pub fn resolve(path: &str, home: &Path, workdir: Option<&str>) -> Result<PathBuf, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    let whole = path.len() + home.as_os_str().len() + 1;
    if whole >= MAX_PATH || path.split('/').any(|name| name.len() > MAX_NAME) {
        return Err(PathError::TooLong);
    }
    if path.is_empty() {
        return match workdir {
            Some(dir) if !dir.is_empty() => resolve(dir, home, None),
            _ => Ok(clean(home)),
        };
    }
    if let Some(rest) = path.strip_prefix('~') {
        return match rest.strip_prefix('/') {
            Some(rest) => Ok(clean(&home.join(rest.trim_start_matches('/')))),
            None if rest.is_empty() => Ok(clean(home)),
            None => Err(PathError::OtherHome),
        };
    }
    // Joining an absolute path replaces the home.
    Ok(clean(&home.join(path)))
}

/// Removes `.`, `..` and doubled slashes without looking at the filesystem; relative paths start at `/`.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at_home(path: &str) -> Result<PathBuf, PathError> {
        resolve(path, Path::new("/home/user"), Some("/work"))
    }

    #[test]
    fn resolves_every_form() {
        for (path, expected) in [
            ("", "/work"),
            ("~", "/home/user"),
            ("~/", "/home/user"),
            ("~/a", "/home/user/a"),
            ("~//etc/passwd", "/home/user/etc/passwd"),
            ("a/b", "/home/user/a/b"),
            ("./a//b/", "/home/user/a/b"),
            ("../x", "/home/x"),
            ("/etc/../tmp/.", "/tmp"),
            ("/../../..", "/"),
        ] {
            assert_eq!(at_home(path), Ok(PathBuf::from(expected)), "{path}");
        }
        assert_eq!(resolve("", Path::new("/root"), None), Ok(PathBuf::from("/root")));
        assert_eq!(resolve("", Path::new("/root"), Some("~/w")), Ok(PathBuf::from("/root/w")));
    }

    #[test]
    fn rejects_other_homes_and_nul() {
        assert_eq!(at_home("~root/x"), Err(PathError::OtherHome));
        assert_eq!(at_home("a\0b"), Err(PathError::Nul));
    }

    proptest! {
        #[test]
        fn is_always_absolute_and_clean(path in ".*") {
            if let Ok(resolved) = at_home(&path) {
                prop_assert!(resolved.is_absolute());
                prop_assert!(!resolved.components().any(|c| matches!(c, Component::ParentDir | Component::CurDir)));
                prop_assert_eq!(clean(&resolved), resolved);
            }
        }
    }
}
