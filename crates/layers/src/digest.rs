//! Computes the digest of a directory tree: SHA-256 over all entries in order, with type, permissions, owner, content, link target and
//! extended attributes. Times are left out, so that a rebuild of the same content is the same layer. Links are never followed.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::LayerError;
use crate::copy_tree::xattrs_of;

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

/// Computes the digest of the tree below `root`.
///
/// # Errors
/// A file or directory in it cannot be read.
pub fn digest_tree(root: &Path) -> Result<LayerDigest, LayerError> {
    let mut hash = Sha256::new();
    // A list instead of recursion, as a sandbox can nest directories deeper than a thread's stack allows; names instead of paths, as it
    // can create millions.
    let mut open = vec![(root.to_owned(), add(root, root, &mut hash)?.into_iter())];
    while let Some((dir, names)) = open.last_mut() {
        let Some(name) = names.next() else {
            open.pop();
            continue;
        };
        let path = dir.join(name);
        let names = add(root, &path, &mut hash)?.into_iter();
        open.push((path, names));
    }
    Ok(LayerDigest(hex::encode(hash.finalize())))
}

/// Adds an entry to the hash; returns the names in it, in order, if it is a directory.
fn add(root: &Path, path: &Path, hash: &mut Sha256) -> Result<Vec<OsString>, LayerError> {
    let metadata = fs::symlink_metadata(path).map_err(LayerError::at(path))?;
    let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes();
    field(hash, name);
    let numbers =
        [u64::from(metadata.mode()), u64::from(metadata.uid()), u64::from(metadata.gid()), device(&metadata)];
    numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
    add_xattrs(path, hash).map_err(LayerError::at(path))?;
    if metadata.is_symlink() {
        field(hash, fs::read_link(path).map_err(LayerError::at(path))?.as_os_str().as_bytes());
    } else if metadata.is_file() {
        hash.update(metadata.len().to_le_bytes());
        File::open(path)
            .and_then(|mut file| io::copy(&mut file, &mut Hasher(hash)))
            .map_err(LayerError::at(path))?;
    } else if metadata.is_dir() {
        let entries: io::Result<Vec<_>> =
            fs::read_dir(path).and_then(|list| list.map(|entry| Ok(entry?.file_name())).collect());
        let mut entries = entries.map_err(LayerError::at(path))?;
        entries.sort_unstable();
        return Ok(entries);
    }
    Ok(Vec::new())
}

fn device(metadata: &Metadata) -> u64 {
    let kind = metadata.file_type();
    if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 }
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
}
