//! A layer as a stream of records, for upper directories on disks that only the guest can read.
//! It is not a tar, whose entries are paths: these limit the depth of a tree and must be resolved again when they are unpacked. Here
//! directories are entered and left, so a name has one component, cannot lead out of the layer, and depth costs nothing.

mod read;
mod write;

pub use read::{StreamLimits, read_layer};
pub use write::write_layer;

/// First bytes of every stream; changes with the format.
const MAGIC: &[u8; 16] = b"cofferdam-layer1";
/// Maximum length of a name, bytes: the kernel's limit.
const MAX_NAME: usize = 255;
/// Maximum length of a symlink's target, bytes: the kernel's limit.
const MAX_TARGET: usize = 4095;
/// Maximum size of an attribute, bytes: the kernel's limit.
const MAX_XATTR: usize = 64 << 10;
/// Maximum number of attributes of a file: more than any file system allows.
const MAX_XATTRS: usize = 4096;
/// Maximum size of all attributes of a file, bytes; these are in memory at once.
const MAX_XATTR_BYTES: usize = 1 << 20;
/// Maximum size of a piece of a file's content, bytes.
const MAX_PIECE: usize = 256 << 10;

/// First byte of each record. Numbers are little-endian.
mod tag {
    /// Name, link number, [`Meta`](super::Meta), size, pieces (length, offset, bytes), a length of zero.
    pub(super) const FILE: u8 = b'f';
    /// Name, link number, meta, target.
    pub(super) const SYMLINK: u8 = b's';
    /// Name, link number, meta.
    pub(super) const PIPE: u8 = b'p';
    /// Name, meta.
    pub(super) const WHITEOUT: u8 = b'w';
    /// Name, link number of an earlier record: another name of the same file.
    pub(super) const LINK: u8 = b'l';
    /// Name.
    pub(super) const ENTER: u8 = b'd';
    /// Metadata of the directory that is left. The last one is the layer's root.
    pub(super) const LEAVE: u8 = b'u';
    /// Nothing follows.
    pub(super) const END: u8 = b'e';
}

/// Metadata of an entry of any kind.
#[derive(Debug, Default)]
struct Meta {
    /// Permission bits with set-user-id, set-group-id and sticky.
    mode: u32,
    user: u32,
    group: u32,
    /// Modification time: seconds and nanoseconds since 1970.
    modified: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Returns whether a layer keeps an extended attribute. Kept are attributes that programs set for themselves, and attributes of overlayfs
/// that are valid over any stack of layers. All other attributes are meant for the guest's kernel and could mislead the host's.
fn is_kept(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        b"trusted.overlay.opaque" => value == b"y",
        b"trusted.overlay.redirect" => is_redirect(value),
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() > 5,
    }
}

/// Returns whether the value is a valid redirect of overlayfs: a path from the root of the layers below, or a name.
fn is_redirect(value: &[u8]) -> bool {
    let parts = value.strip_prefix(b"/").unwrap_or(value);
    let is_part = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    let is_path = value.starts_with(b"/") || !value.contains(&b'/');
    is_path && value.len() <= MAX_TARGET && parts.split(|byte| *byte == b'/').all(is_part)
}

#[cfg(test)]
mod tests;
