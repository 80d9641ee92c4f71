//! Private disks of sandboxes, and the empty files that they and guests' memories start from.
//!
//! A disk is a sparse file in a writable tree of its own, so copying the tree copies the disk:
//! instantly where the file system shares blocks. The host never reads the file system in a disk
//! that a guest has written.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use engine::{EngineError, SandboxId};
use engine_host::{tree_error, tree_of};
use layers::TreeName;

use crate::host::Host;
use crate::vm::command_line::{DEVICES_FILE, DISK_FILE};
use crate::vm::create_sparse_file;

/// Room for QEMU's device state beside the disk, MiB.
pub(crate) const DEVICES_ROOM_MIB: u32 = 64;

/// Returns the writable tree with an empty, formatted disk of this size; creates it at first use.
/// Blocks.
///
/// # Errors
/// mkfs.ext4 is missing or fails, or there is no room on the disk.
pub(crate) fn blank_disk(host: &Host, disk_mib: u32) -> Result<TreeName, EngineError> {
    let name: TreeName = format!("blank-{disk_mib}").parse().map_err(tree_error("name a writable tree"))?;
    let path = host.trees.path(&name);
    // Without the lock, so that a disk of another size that is being formatted delays nobody.
    if path.join(DISK_FILE).exists() {
        return Ok(name);
    }
    let _one_at_a_time = host.boot_snapshots.lock_blanks();
    if path.join(DISK_FILE).exists() {
        return Ok(name);
    }
    host.trees.discard(&name).map_err(tree_error("remove an incomplete disk"))?;
    host.trees.create(&name, None).map_err(tree_error("create a writable tree"))?;
    guest::disk_images::format_empty(disk_mib, &path.join(DISK_FILE)).map_err(|error| {
        EngineError::Kernel { step: "format a disk", source: std::io::Error::other(error) }
    })?;
    Ok(name)
}

/// Size of a disk without a limit, MiB: a disk image needs some size.
pub(crate) const DEFAULT_DISK_MIB: u32 = 64 << 10;
/// Maximum size of a disk, MiB. Larger requests are reduced to it: formatting takes time and room
/// for each block group.
pub(crate) const MAX_DISK_MIB: u32 = 1 << 20;

/// Copies the tree `from` for a sandbox whose QEMU runs as `uid`, and returns the copy's directory.
pub(crate) fn create_disk(
    host: &Host,
    from: &TreeName,
    id: &SandboxId,
    disk_mib: u32,
    uid: u32,
) -> Result<PathBuf, EngineError> {
    let own = tree_of(id);
    let limit = Some(disk_mib.saturating_add(DEVICES_ROOM_MIB));
    host.trees.copy(from, &own, false, limit).map_err(tree_error("copy a disk"))?;
    let path = host.trees.path(&own);
    // The directory stays root's: code that has taken over QEMU can write to these two files and
    // create no others.
    let set_owners = || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        fs::write(path.join(DEVICES_FILE), "")?;
        [DISK_FILE, DEVICES_FILE].iter().try_for_each(|file| give_to(&path.join(file), uid))
    };
    set_owners().map_err(EngineError::kernel("set owners of a sandbox's disk"))?;
    Ok(path)
}

fn give_to(path: &Path, uid: u32) -> std::io::Result<()> {
    chown(path, Some(uid), Some(uid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// Returns a directory with a sparse file of this size: the memory that a booting guest starts
/// from.
pub(crate) fn zero_memory(host: &Host, memory_mib: u32) -> Result<PathBuf, EngineError> {
    let dir = host.zero_memory_dir.join(memory_mib.to_string());
    let file = dir.join(crate::vm::command_line::MEMORY_FILE);
    if !file.exists() {
        let _one_at_a_time = host.boot_snapshots.lock_blanks();
        fs::create_dir_all(&dir)
            .and_then(|()| create_sparse_file(&file, u64::from(memory_mib) << 20))
            .map_err(EngineError::kernel("create the memory file of a booting guest"))?;
    }
    Ok(dir)
}
