//! The filesystem service: entries, directories, moves, removals, and watching.
//! Acts as root, and gives what it makes to the user it makes it for.
//! Every call runs on a blocking thread: the filesystem may be one that does not answer.

pub mod dirs;
pub mod entry;
pub mod list;
pub mod metadata;
pub mod ops;
pub mod service;
pub mod watch;
