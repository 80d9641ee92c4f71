//! Extended attributes from one file to another, all namespaces: overlay's own (`trusted.`) carry whiteouts and renames.
//! Files are named through their open directory's entry under `/proc/self/fd`, because links and sockets cannot be opened.
//! The last component is never followed.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

/// Where the entry `name` of an open directory can be named without following anything of the tree.
pub(crate) fn entry_path(dir: impl AsFd, name: &CStr) -> PathBuf {
    let number = dir.as_fd().as_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{number}")).join(OsStr::from_bytes(name.to_bytes()))
}

/// Which attributes a copy gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attributes {
    /// Every one: the copy is an overlay's upper again.
    All,
    /// Of overlay's own only those that mean something in a lower layer: the others name files of the old stack.
    OfALayer,
}

impl Attributes {
    fn include(self, name: &[u8]) -> bool {
        const KEPT: [&[u8]; 2] = [b"trusted.overlay.opaque", b"trusted.overlay.redirect"];
        self == Self::All || !name.starts_with(b"trusted.overlay.") || KEPT.contains(&name)
    }
}

/// Gives `to` the attributes of `from`.
pub(crate) fn copy_xattrs(from: &Path, to: &Path, wanted: Attributes) -> io::Result<()> {
    for (name, value) in xattrs_of(from)?.into_iter().filter(|(name, _)| wanted.include(name)) {
        match lsetxattr(to, &*name, &value, XattrFlags::empty()) {
            // Some belong to one kind of file system only (`btrfs.`); those that carry content go everywhere.
            Err(Errno::OPNOTSUPP) if !(name.starts_with(b"trusted.") || name.starts_with(b"user.")) => {}
            answer => answer?,
        }
    }
    Ok(())
}

/// Names and values, in no order.
pub(crate) fn xattrs_of(file: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match read(|buffer| llistxattr(file, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        answer => answer?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_owned(), read(|buffer| lgetxattr(file, name, buffer))?))).collect()
}

/// The kernel's limit on a list and on a value.
const LARGEST: usize = 64 << 10;

/// Reads what rarely is long and never longer than the kernel's limit.
fn read(mut ask: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut content = vec![0u8; 512];
    let length = match ask(&mut content) {
        Err(Errno::RANGE) => {
            content.resize(LARGEST, 0);
            ask(&mut content)?
        }
        answer => answer?,
    };
    content.truncate(length);
    Ok(content)
}
