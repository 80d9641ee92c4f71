//! [`Entry`]: what is at a path of a volume.

use rustix::fs::{FileType, Statx, StatxTimestamp};
use std::ffi::CStr;
use time::OffsetDateTime;

use super::path::VolumePath;

/// Kinds of entries that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Unknown,
}

/// What is at a path of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last part of the path; empty for the root.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Absolute path within the volume.
    pub path: String,
    /// Size, bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as seen inside sandboxes.
    pub uid: u32,
    /// Group, as seen inside sandboxes.
    pub gid: u32,
    /// Last read.
    pub accessed: OffsetDateTime,
    /// Last change of the content.
    pub modified: OffsetDateTime,
    /// Last change of content or attributes.
    pub changed: OffsetDateTime,
    /// Text of a symbolic link.
    pub target: Option<String>,
}

impl Entry {
    pub(super) fn new(path: &VolumePath, found: &Statx, target: Option<&CStr>) -> Self {
        Self {
            name: path.name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            kind: kind_of(FileType::from_raw_mode(u32::from(found.stx_mode))),
            path: path.display(),
            size: found.stx_size,
            mode: u32::from(found.stx_mode) & super::MODE_BITS,
            uid: found.stx_uid,
            gid: found.stx_gid,
            accessed: time_of(&found.stx_atime),
            modified: time_of(&found.stx_mtime),
            changed: time_of(&found.stx_ctime),
            target: target.map(|target| target.to_string_lossy().into_owned()),
        }
    }
}

fn kind_of(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        _ => EntryKind::Unknown,
    }
}

/// A time that cannot be shown, which guests can set, is shown as the year 1970.
fn time_of(at: &StatxTimestamp) -> OffsetDateTime {
    let nanos = i128::from(at.tv_sec) * 1_000_000_000 + i128::from(at.tv_nsec);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .filter(|time| (0..=9999).contains(&time.year()))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
