//! Volumes: directory trees that outlive sandboxes and are shared by those that mount them. [`VolumeTrees`] has them on disk;
//! [`VolumeRoot`] reads and writes the content of one.
//! Sandboxes write here, so every name, link and type of file in a volume is hostile: paths are resolved by the kernel within the
//! volume's root, and nothing but files, directories and links is opened.
#![forbid(unsafe_code)]

mod content;
mod error;
mod trees;

pub use content::{
    Attributes, CreateOptions, DEFAULT_DIR_MODE, DEFAULT_FILE_MODE, DEFAULT_OWNER, Entry, EntryKind,
    MAX_DEPTH, NewFile, ReadFile, VolumePath, VolumeRoot,
};
pub use error::VolumeError;
pub use trees::{VolumeTrees, VolumeUsage};
