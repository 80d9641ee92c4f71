//! Numbers of nodes. A number says which sandbox and which entry it is, so the server keeps no table of nodes: a new process serves an
//! old connection, and no guest can fill a table.

use crate::content::{ENTRIES, Entry, TOP};

/// The root, whose directories are the sandboxes.
pub(crate) const ROOT: u64 = 1;

/// Number of low bits of a node that are the index of its entry.
const ENTRY_BITS: u32 = 8;

/// An entry of a sandbox's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    /// Number of the sandbox's range of ids: its first id without the low 16 bits.
    pub(crate) range: u32,
    /// Index in [`ENTRIES`].
    pub(crate) index: usize,
}

impl Node {
    /// The directory of the sandbox whose range of ids begins at `uid_base`.
    pub(crate) fn top(uid_base: u32) -> Self {
        Self { range: uid_base >> 16, index: TOP }
    }

    /// The node with this number, unless it is the root's or no node has it.
    pub(crate) fn of(number: u64) -> Option<Self> {
        let range = u32::try_from(number >> ENTRY_BITS).ok().filter(|range| *range > 0)?;
        let index = usize::try_from(number & ((1 << ENTRY_BITS) - 1)).ok()?;
        (index < ENTRIES.len()).then_some(Self { range, index })
    }

    pub(crate) fn number(self) -> u64 {
        u64::from(self.range) << ENTRY_BITS | self.index as u64
    }

    pub(crate) fn entry(self) -> &'static Entry {
        &ENTRIES[self.index]
    }

    /// First id of the sandbox's range.
    pub(crate) fn uid_base(self) -> u32 {
        self.range << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_lead_back() {
        for uid_base in [1 << 28, (1 << 28) + (1 << 16), 0xefff_0000] {
            let top = Node::top(uid_base);
            assert_eq!(top.uid_base(), uid_base);
            for index in 0..ENTRIES.len() {
                let node = Node { index, ..top };
                assert_eq!(Node::of(node.number()), Some(node));
                assert_ne!(node.number(), ROOT);
            }
        }
        assert_eq!(Node::of(ROOT), None);
        assert_eq!(Node::of(0x1000 << 8 | 0xff), None);
    }
}
