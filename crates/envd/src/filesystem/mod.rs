//! The filesystem service: entries, directories, moves, removals, and watching.
//! It acts as root and makes the requesting user the owner of new entries.
//! Every call runs on a blocking thread: filesystems may block.

pub mod dirs;
pub mod entry;
pub mod list;
pub mod metadata;
pub mod ops;
pub mod service;
pub mod watch;
