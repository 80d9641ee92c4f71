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
    /// Length of the longest path below the top, with a slash before each name, bytes.
    pub longest_path: usize,
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
        /// Length of the path of the directory that is being visited.
        path: usize,
        /// The lengths of its parents' paths.
        above: Vec<usize>,
    }
    impl Sum {
        /// Returns the length of the path of an entry.
        fn path_of(&mut self, name: &CStr) -> usize {
            let length = self.path + 1 + name.count_bytes();
            self.size.longest_path = self.size.longest_path.max(length);
            length
        }

        fn add(&mut self, stat: &Stat) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.size.bytes = self.size.bytes.saturating_add(blocks.saturating_mul(512));
        }
    }
    impl Visitor for Sum {
        fn file(&mut self, _dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
            self.path_of(name);
            self.size.entries += 1;
            if stat.st_nlink == 1 || self.seen.insert(id_of(stat)) {
                self.add(stat);
            }
            Ok(())
        }

        fn enter(&mut self, name: &CStr) -> io::Result<()> {
            let below = self.path_of(name);
            self.above.push(std::mem::replace(&mut self.path, below));
            Ok(())
        }

        fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
            self.path = self.above.pop().unwrap_or(0);
            self.size.entries += 1;
            self.add(&fstat(dir)?);
            Ok(())
        }
    }
    let mut sum = Sum::default();
    visit(top, &mut sum)?;
    Ok(sum.size)
}
