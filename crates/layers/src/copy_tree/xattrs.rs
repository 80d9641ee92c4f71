//! Reads and copies extended attributes of all namespaces; overlayfs keeps opaque directories and renames in `trusted.`.
//! Files are named by paths through `/proc/self/fd/<directory>`, because links and sockets cannot be opened. The last component is
//! never followed.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

/// Returns a path of the entry `name` of an open directory that leads through no link of the tree.
pub(crate) fn entry_path(dir: impl AsFd, name: &CStr) -> PathBuf {
    let number = dir.as_fd().as_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{number}")).join(OsStr::from_bytes(name.to_bytes()))
}

/// Which attributes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attributes {
    /// All: the copy will be an overlay's upper directory again.
    All,
    /// All except overlayfs attributes that are only valid in the original stack of layers.
    ForLayer,
}

impl Attributes {
    fn include(self, name: &[u8]) -> bool {
        const KEPT: [&[u8]; 2] = [b"trusted.overlay.opaque", b"trusted.overlay.redirect"];
        self == Self::All || !name.starts_with(b"trusted.overlay.") || KEPT.contains(&name)
    }
}

/// Copies the wanted attributes of `from` to `to`.
pub(crate) fn copy_xattrs(from: &Path, to: &Path, wanted: Attributes) -> io::Result<()> {
    for (name, value) in xattrs_of(from)?.into_iter().filter(|(name, _)| wanted.include(name)) {
        match lsetxattr(to, &*name, &value, XattrFlags::empty()) {
            // Attributes of one kind of file system (`btrfs.`) are skipped; those that carry content must be copied.
            Err(Errno::OPNOTSUPP) if !(name.starts_with(b"trusted.") || name.starts_with(b"user.")) => {}
            answer => answer?,
        }
    }
    Ok(())
}

/// Returns names and values of a file's attributes, in no particular order.
pub(crate) fn xattrs_of(file: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match read(|buffer| llistxattr(file, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        answer => answer?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_owned(), read(|buffer| lgetxattr(file, name, buffer))?))).collect()
}

/// The kernel's maximum size of a list of names and of a value, bytes.
const MAX_SIZE: usize = 64 << 10;

/// Calls `ask` with a small buffer, and if that is too small with one of the maximum size.
fn read(mut ask: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut content = vec![0u8; 512];
    let length = match ask(&mut content) {
        Err(Errno::RANGE) => {
            content.resize(MAX_SIZE, 0);
            ask(&mut content)?
        }
        answer => answer?,
    };
    content.truncate(length);
    Ok(content)
}
