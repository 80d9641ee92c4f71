//! A layer as a stream, for uppers on disks that only their own machine can read.
//! Not a tar: there an entry is a path, which limits how deep a tree may be and has to be looked up again by whoever unpacks it.
//! Here directories are entered and left, so a name is one part, nothing can lead elsewhere, and depth costs nothing.

mod read;
mod write;

pub use read::{StreamLimits, read_layer};
pub use write::write_layer;

/// What every stream begins with; changes when its form does.
const MAGIC: &[u8; 16] = b"cofferdam-layer1";
/// Longest name, bytes: the kernel's limit.
const MAX_NAME: usize = 255;
/// Longest target of a symlink, bytes: the kernel's limit.
const MAX_TARGET: usize = 4095;
/// Largest attribute, bytes: the kernel's limit.
const MAX_XATTR: usize = 64 << 10;
/// Most attributes of one file: more than any file system holds.
const MAX_XATTRS: usize = 4096;
/// Most bytes of one file's attributes together, which are in memory at once.
const MAX_XATTR_BYTES: usize = 1 << 20;
/// Largest piece of a file's content, bytes.
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
    /// Meta of the directory that is left. The last one is the layer's root.
    pub(super) const LEAVE: u8 = b'u';
    /// Nothing follows.
    pub(super) const END: u8 = b'e';
}

/// What files of all kinds have.
#[derive(Debug, Default)]
struct Meta {
    /// Permission bits with set-user-id, set-group-id and sticky.
    mode: u32,
    user: u32,
    group: u32,
    /// Last change of the content: seconds and nanoseconds since 1970.
    modified: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether a layer keeps an attribute: what programs set for themselves, and of overlayfs' own those that mean something over
/// any stack. Everything else speaks to the machine it comes from, or to the one it would come to.
fn is_kept(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        b"trusted.overlay.opaque" => value == b"y",
        b"trusted.overlay.redirect" => is_redirect(value),
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() > 5,
    }
}

/// A path from the root of the layers below, or a name beside.
fn is_redirect(value: &[u8]) -> bool {
    let parts = value.strip_prefix(b"/").unwrap_or(value);
    let is_part = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    let is_path = value.starts_with(b"/") || !value.contains(&b'/');
    is_path && value.len() <= MAX_TARGET && parts.split(|byte| *byte == b'/').all(is_part)
}

#[cfg(test)]
mod tests;
