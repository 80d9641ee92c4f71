//! The filesystem service: entries, directories, moves, removals, and watching.
//! It acts with the rights of the requesting user ([`crate::identity`]), and a little beyond them where [`root_only`] says so.
//! Every call runs on a blocking thread: filesystems may block.

pub mod dirs;
pub mod entry;
pub mod list;
pub mod metadata;
pub mod ops;
pub mod root_only;
pub mod service;
pub mod watch;
