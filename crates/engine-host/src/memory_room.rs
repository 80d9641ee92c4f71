//! [`MemoryRoom`]: whether the disk has room for an image of a sandbox's memory.
//! A memory image must not fill a disk that sandboxes write to: no sandbox of this server would survive that.

use std::path::Path;

use engine::EngineError;
use layers::room_beside;

use crate::Group;

/// How much memory a capture has to write at most, and how much room the disk has for it.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRoom {
    /// Memory of the sandbox and what else the image has, bytes.
    pub needed: u64,
    /// Room on the disk, bytes; never less than `needed`.
    pub free: u64,
}

impl MemoryRoom {
    /// Compares the memory of the processes in `group`, and the `files` bytes that are captured with it, with the room on the disk
    /// of the directory `snapshots`.
    pub(crate) fn check(group: &Group, files: u64, snapshots: &Path) -> Result<Self, EngineError> {
        let memory = group.stats().map_err(EngineError::kernel("read statistics"))?.memory_bytes;
        let needed = memory.saturating_add(files);
        let free = room_beside(snapshots)
            .map_err(EngineError::kernel("find out how much room there is for the memory image"))?;
        if needed <= free {
            return Ok(Self { needed, free });
        }
        Err(EngineError::Exhausted(format!(
            "its memory takes up to {} MiB, and the disk of snapshots has less room; free some space or capture without memory",
            needed >> 20
        )))
    }

    /// Returns how much there is to write, MiB.
    #[must_use]
    pub fn needed_mib(self) -> u32 {
        u32::try_from(self.needed >> 20).unwrap_or(u32::MAX)
    }
}
