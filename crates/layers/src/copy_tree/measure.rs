//! Measures trees.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Stat, fstat};
use walk::{Id, Visitor, id_of, visit};

/// The size of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// Space on disk, bytes; files with several names count once.
    pub bytes: u64,
    /// Number of entries, including the top.
    pub entries: u64,
}

/// Returns the size of the tree below `top`.
///
/// # Errors
/// The tree cannot be read, or changes meanwhile.
pub(crate) fn measure(top: OwnedFd) -> io::Result<TreeSize> {
    #[derive(Default)]
    struct Sum {
        size: TreeSize,
        seen: HashSet<Id>,
    }
    impl Sum {
        fn add(&mut self, stat: &Stat) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.size.bytes = self.size.bytes.saturating_add(blocks.saturating_mul(512));
        }
    }
    impl Visitor for Sum {
        fn file(&mut self, _dir: &OwnedFd, _name: &CStr, stat: &Stat) -> io::Result<()> {
            self.size.entries += 1;
            if stat.st_nlink == 1 || self.seen.insert(id_of(stat)) {
                self.add(stat);
            }
            Ok(())
        }

        fn enter(&mut self, _name: &CStr) -> io::Result<()> {
            Ok(())
        }

        fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
            self.size.entries += 1;
            self.add(&fstat(dir)?);
            Ok(())
        }
    }
    let mut sum = Sum::default();
    visit(top, &mut sum)?;
    Ok(sum.size)
}
