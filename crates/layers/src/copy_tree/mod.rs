//! Measures and copies untrusted directory trees, which `walk` visits.
//! A tree must not change while it is read; if it does, the result is an error, never access to files outside of it.

mod copy;
mod measure;
mod xattrs;

pub(crate) use copy::{Sharing, copy_tree};
pub use measure::TreeSize;
pub(crate) use measure::measure;
pub(crate) use xattrs::{Attributes, entry_path, xattrs_of};
