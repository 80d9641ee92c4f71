//! Computes the digest of a directory tree: SHA-256 over all entries in order, with type, permissions, owner, content, link target and
//! extended attributes. Times are left out, so that a rebuild of the same content is the same layer. Links are never followed.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use sha2::{Digest, Sha256};
use walk::{Id, for_each_entry, id_of, open_dir, open_parent};

use crate::LayerError;
use crate::copy_tree::{entry_path, xattrs_of};

/// A layer's digest, which is also its name: 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerDigest(String);

impl LayerDigest {
    /// Returns the hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LayerDigest {
    type Err = LayerError;

    fn from_str(text: &str) -> Result<Self, LayerError> {
        let is_hex =
            text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_hex { Ok(Self(text.to_owned())) } else { Err(LayerError::Digest(text.to_owned())) }
    }
}

/// Maximum length of a path in a layer, bytes. The hash contains whole paths, so that without a limit the time of hashing would be the
/// square of a tree's depth; and what is read by path (`mkfs.ext4`) can read no longer ones.
const MAX_PATH: usize = 4000;

/// A directory that is being hashed.
struct Level {
    id: Id,
    /// The length of its path.
    length: usize,
    /// Names in it that were not hashed yet, in order.
    names: std::vec::IntoIter<CString>,
}

/// Computes the digest of the tree below `root`.
///
/// # Errors
/// A file or directory in it cannot be read, or changes meanwhile, or its path is too long.
pub fn digest_tree(root: &Path) -> Result<LayerDigest, LayerError> {
    let mut hash = Sha256::new();
    let mut here = open_dir(CWD, root).map_err(LayerError::at(root))?;
    // The path below `root` of what is being hashed.
    let mut path = Vec::new();
    let stat = fstat(&here).map_err(LayerError::at(root))?;
    add(&here, c".", &path, &stat, &mut hash).map_err(LayerError::at(root))?;
    let mut levels = vec![level(&here, &path).map_err(LayerError::at(root))?];
    while let Some(level_here) = levels.last_mut() {
        path.truncate(level_here.length);
        let Some(name) = level_here.names.next() else {
            levels.pop();
            if let Some(above) = levels.last() {
                here = open_parent(&here, above.id).map_err(fail_at(root, &path))?;
            }
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if path.len() > MAX_PATH {
            return Err(LayerError::TooDeep { start: shown(root, &path) });
        }
        let stat = statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| fail_at(root, &path)(error.into()))?;
        add(&here, &name, &path, &stat, &mut hash).map_err(fail_at(root, &path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            here = open_dir(&here, &name).map_err(|error| fail_at(root, &path)(error.into()))?;
            levels.push(level(&here, &path).map_err(fail_at(root, &path))?);
        }
    }
    Ok(LayerDigest(hex::encode(hash.finalize())))
}

fn fail_at(root: &Path, path: &[u8]) -> impl FnOnce(io::Error) -> LayerError {
    let path = shown(root, path);
    move |source| LayerError::Io { path, source }
}

/// Returns the beginning of a path, for messages.
fn shown(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(&path[..path.len().min(200)]))
}

/// Reads the names in a directory.
fn level(dir: &OwnedFd, path: &[u8]) -> io::Result<Level> {
    let mut names = Vec::new();
    for_each_entry(dir, |name, _| {
        names.push(name);
        io::Result::Ok(true)
    })?;
    names.sort_unstable();
    Ok(Level { id: id_of(&fstat(dir)?), length: path.len(), names: names.into_iter() })
}

/// Adds the entry `name` of a directory to the hash.
fn add(dir: &OwnedFd, name: &CStr, path: &[u8], stat: &Stat, hash: &mut Sha256) -> io::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    field(hash, path);
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let device = if is_device { stat.st_rdev } else { 0 };
    let numbers = [u64::from(stat.st_mode), u64::from(stat.st_uid), u64::from(stat.st_gid), device];
    numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
    add_xattrs(&entry_path(dir, name), hash)?;
    match kind {
        FileType::Symlink => field(hash, readlinkat(dir, name, Vec::new())?.to_bytes()),
        FileType::RegularFile => {
            hash.update(stat.st_size.to_le_bytes());
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
            io::copy(&mut file, &mut Hasher(hash))?;
        }
        _ => {}
    }
    Ok(())
}

/// Adds a field with its length, so that no two different entries have the same hash.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

struct Hasher<'a>(&'a mut Sha256);

impl io::Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn add_xattrs(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut xattrs = xattrs_of(path)?;
    xattrs.sort_unstable();
    for (name, value) in xattrs {
        field(hash, &name);
        field(hash, &value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn deep_trees_do_not_overflow_the_stack() {
        let dir = tempfile::tempdir().unwrap();
        let deepest = dir.path().join(vec!["d"; 1900].join("/"));
        fs::create_dir_all(&deepest).unwrap();
        let before = digest_tree(dir.path()).unwrap();
        fs::write(deepest.join("file"), "x").unwrap();
        assert_ne!(digest_tree(dir.path()).unwrap(), before);
    }

    #[test]
    fn trees_deeper_than_a_layer_may_be_are_refused() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut deepest = open_dir(CWD, dir.path()).unwrap();
        for _ in 0..100_000 {
            mkdirat(&deepest, "d", Mode::from_raw_mode(0o700)).unwrap();
            deepest = open_dir(&deepest, "d").unwrap();
        }
        drop(deepest);
        assert!(matches!(digest_tree(dir.path()), Err(LayerError::TooDeep { .. })));
        walk::remove(dir.path()).unwrap();
    }

    /// Digests are the names of layers that exist: a new way to compute them must give the same ones.
    #[test]
    fn digests_stay_the_same() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("b")).unwrap();
        fs::write(root.join("b/file"), "content").unwrap();
        fs::write(root.join("b-file"), "").unwrap();
        symlink("nowhere", root.join("link")).unwrap();
        chown(root.join("b-file"), Some(7), Some(8)).unwrap();
        for name in ["", "b", "b/file", "b-file"] {
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o750)).unwrap();
        }
        let attribute = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("b"), "trusted.overlay.opaque", b"y", attribute).unwrap();
        assert_eq!(
            digest_tree(root).unwrap().as_str(),
            "51e884ed57e82720f4432cb1e45ebdedb7459e3427b2f6ef70fa81c5f88de3f1"
        );
    }
}
