//! Owners, modes, times and extended attributes of unpacked entries.
//! Attributes of overlayfs and of the host's security modules are never taken from an image. Values that a sandbox cannot have are
//! replaced, with a warning.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, lgetxattr, llistxattr,
    lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use crate::tarball::TarEntry;

/// Maximum user or group id in a sandbox.
pub(crate) const MAX_ID: u64 = 65_535;
/// The id that other ids become.
const NOBODY: u32 = 65_534;
/// An extended attribute's name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);
/// Maximum number of warnings.
const MAX_WARNINGS: usize = 20;

/// Attribute of a directory that hides its entries in the layers below.
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Attribute with the path of a renamed directory in the layers below.
pub(crate) const REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// Messages about changes that were made while unpacking.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Vec<String>);

impl Warnings {
    pub(crate) fn add(&mut self, entry: &[u8], what: &str) {
        if self.0.len() < MAX_WARNINGS {
            let shown = &entry[..entry.len().min(200)];
            self.0.push(format!("{}: {what}", String::from_utf8_lossy(shown)));
        }
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// Metadata of a file or directory.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
    pub(super) modified: Timespec,
    pub(super) xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Returns an entry's metadata, with values that a sandbox cannot have replaced.
    pub(super) fn of(entry: &TarEntry, is_template: bool, warnings: &mut Warnings) -> Self {
        let mut id = |id: u64| {
            if id > MAX_ID {
                warnings.add(&entry.name, &format!("owner {id} is beyond 65535 and became nobody"));
                return NOBODY;
            }
            u32::try_from(id).unwrap_or(NOBODY)
        };
        let (user, group) = (id(entry.user), id(entry.group));
        let kept = entry.xattrs.iter().filter_map(|(name, value)| {
            let value = kept_xattr(name, value, is_template);
            if value.is_none() && !is_quietly_dropped(name) {
                warnings
                    .add(&entry.name, &format!("attribute {} was dropped", String::from_utf8_lossy(name)));
            }
            Some((name.clone(), value?))
        });
        let xattrs = kept.collect();
        let (tv_sec, nanoseconds) = entry.modified;
        let modified = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
        Self { user, group, mode: entry.mode, modified, xattrs }
    }

    /// Returns the metadata of a directory that no entry describes.
    pub(super) fn plain_dir(modified: Timespec) -> Self {
        Self { user: 0, group: 0, mode: 0o755, modified, xattrs: Vec::new() }
    }

    /// Sets the metadata of an entry of an open directory, without following it.
    pub(super) fn give(&self, dir: &OwnedFd, name: &[u8], is_symlink: bool) -> Result<(), Errno> {
        let (user, group) = (Some(Uid::from_raw(self.user)), Some(Gid::from_raw(self.group)));
        chownat(dir, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_symlink {
            return set_time(dir, name, self.modified);
        }
        // Created by us and not a link, so nothing is followed. After the owner: changing that clears bits.
        chmodat(dir, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        let path = entry_path(dir, name);
        for (key, value) in &self.xattrs {
            match lsetxattr(&path, &**key, value, XattrFlags::empty()) {
                // Not supported on this kind of file or file system, or an invalid value.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) if !key.starts_with(b"trusted.") => {}
                answer => answer?,
            }
        }
        set_time(dir, name, self.modified)
    }
}

pub(super) fn set_time(dir: &OwnedFd, name: &[u8], modified: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: modified, last_modification: modified };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Returns whether new entries of a directory inherit permissions.
pub(super) fn passes_on(dir: &OwnedFd) -> Result<bool, Errno> {
    match lgetxattr(entry_path(dir, b"."), DEFAULT_ACL, &mut [0u8; 0]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes inherited permissions from a new entry.
pub(super) fn disinherit(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    for acl in [ACCESS_ACL, DEFAULT_ACL] {
        match lremovexattr(entry_path(dir, name), acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns a path of an entry of an open directory that leads through no link of the tree.
pub(crate) fn entry_path(dir: &OwnedFd, name: &[u8]) -> PathBuf {
    let number = dir.as_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{number}")).join(OsStr::from_bytes(name))
}

/// Returns the attribute's value, if a layer may have it.
pub(crate) fn kept_xattr(name: &[u8], value: &[u8], is_template: bool) -> Option<Vec<u8>> {
    match name {
        b"security.capability" => capability(value),
        ACCESS_ACL | DEFAULT_ACL => Some(value.to_owned()),
        REDIRECT if is_template && is_redirect(value) => Some(value.to_owned()),
        _ if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() > 5 => {
            Some(value.to_owned())
        }
        _ => None,
    }
}

/// Returns whether to drop an attribute without a warning: security labels of the host an image was made on, which can be on every
/// file.
fn is_quietly_dropped(name: &[u8]) -> bool {
    matches!(name, b"security.selinux")
}

/// Returns file capabilities in the form without a namespace's root.
fn capability(value: &[u8]) -> Option<Vec<u8>> {
    const VERSION: u32 = 0xff00_0000;
    const EFFECTIVE: u32 = 1;
    let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let magic = word(0)?;
    if magic & !(VERSION | EFFECTIVE) != 0 {
        return None;
    }
    match (magic & VERSION, value.len()) {
        (0x0200_0000, 20) => Some(value.to_owned()),
        (0x0300_0000, 24) if word(20)? == 0 => {
            let mut plain = (0x0200_0000 | (magic & EFFECTIVE)).to_le_bytes().to_vec();
            plain.extend_from_slice(&value[4..20]);
            Some(plain)
        }
        _ => None,
    }
}

/// Returns whether a redirect is valid: a name in the same directory, or a path from the root of the layers.
pub(crate) fn is_redirect(value: &[u8]) -> bool {
    let is_part = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    let is_path = match value.strip_prefix(b"/") {
        Some(path) => path.split(|byte| *byte == b'/').all(is_part),
        None => is_part(value) && !value.contains(&b'/'),
    };
    is_path && value.len() <= 256 && !value.contains(&0)
}

/// Returns names and values of all attributes, sorted by name. Links are not followed.
pub(crate) fn xattrs_of(dir: &OwnedFd, name: &[u8]) -> Result<Vec<Xattr>, Errno> {
    let path = entry_path(dir, name);
    let names = match read(|buffer| llistxattr(&path, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        answer => answer?,
    };
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let pair = |name: &[u8]| Ok((name.to_owned(), read(|buffer| lgetxattr(&path, name, buffer))?));
    names.into_iter().map(pair).collect()
}

/// Returns whether a directory hides its entries in the layers below.
pub(crate) fn is_opaque(dir: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 2];
    match lgetxattr(entry_path(dir, b"."), OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::RANGE | Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn make_opaque(dir: &OwnedFd) -> Result<(), Errno> {
    lsetxattr(entry_path(dir, b"."), OPAQUE, b"y", XattrFlags::empty())
}

/// Calls `ask` with a small buffer, and if that is too small with one of the kernel's maximum size.
fn read(mut ask: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut content = vec![0u8; 512];
    let length = match ask(&mut content) {
        Err(Errno::RANGE) => {
            content.resize(64 << 10, 0);
            ask(&mut content)?
        }
        answer => answer?,
    };
    content.truncate(length);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_for_the_host_are_not_kept() {
        let is_kept = |name: &str| kept_xattr(name.as_bytes(), b"y", false).is_some();
        assert!(is_kept("user.note"));
        for name in [
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "trusted.x",
            "user.overlay.opaque",
            "user.",
            "security.selinux",
            "security.ima",
            "security.capability",
            "btrfs.compression",
        ] {
            assert!(!is_kept(name), "{name}");
        }
        assert!(kept_xattr(REDIRECT, b"/a/b", true).is_some());
        for bad in [&b"../a"[..], b"/a/../b", b"a/b", b"/", b"", b"..", b"/a//b", b"a\0b"] {
            assert!(kept_xattr(REDIRECT, bad, true).is_none());
        }
        assert!(kept_xattr(OPAQUE, b"y", true).is_none());
    }

    #[test]
    fn capabilities_lose_their_namespace() {
        let second = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        assert_eq!(capability(&second), Some(second.clone()));
        let third = [&[1, 0, 0, 3][..], &[7; 16], &[0; 4]].concat();
        assert_eq!(capability(&third), Some(second));
        assert_eq!(capability(&[&[1, 0, 0, 3][..], &[7; 16], &[1, 0, 0, 0]].concat()), None);
        assert_eq!(capability(&[1, 0, 0, 2]), None);
    }
}
