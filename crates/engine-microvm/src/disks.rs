//! The private disk of a sandbox: what it writes.
//! A disk is a sparse file in a tree, so a copy of it is a copy of the tree: instant where the disk can.
//! The host never looks into a disk that a guest has written.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use engine::{EngineError, SandboxId};
use engine_host::{tree_error, tree_of};
use layers::TreeName;

use crate::host::Host;
use crate::vm::command_line::{DEVICES_FILE, DISK_FILE};
use crate::vm::create_sparse_file;

/// Room in a sandbox's tree besides its disk, MiB: the state of its devices.
pub(crate) const DEVICES_ROOM_MIB: u32 = 64;

/// The tree with an empty, formatted disk of this size, made when it is first wanted.
pub(crate) fn blank_disk(host: &Host, disk_mib: u32) -> Result<TreeName, EngineError> {
    let name: TreeName = format!("blank-{disk_mib}").parse().map_err(tree_error("name a tree"))?;
    let path = host.trees.path(&name);
    // Nobody waits for another size that is being formatted.
    if path.join(DISK_FILE).exists() {
        return Ok(name);
    }
    let _one_at_a_time = host.warm_starts.lock_blanks();
    if path.join(DISK_FILE).exists() {
        return Ok(name);
    }
    host.trees.discard(&name).map_err(tree_error("discard half a disk"))?;
    host.trees.create(&name, None).map_err(tree_error("make a tree"))?;
    guest::disk_images::format_empty(disk_mib, &path.join(DISK_FILE)).map_err(|error| {
        EngineError::Kernel { step: "format a disk", source: std::io::Error::other(error) }
    })?;
    Ok(name)
}

/// The size of a disk that is to have no limit, MiB: disks have a size.
pub(crate) const DEFAULT_DISK_MIB: u32 = 64 << 10;
/// Largest disk, MiB, whatever was asked for: formatting costs time and room for each group of its blocks.
pub(crate) const MAX_DISK_MIB: u32 = 1 << 20;

/// Makes a sandbox's tree from another one, for the machine with this user; answers where it is.
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
    // The directory stays root's: whoever takes QEMU over can write into these two files and make no others.
    let furnish = || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        fs::write(path.join(DEVICES_FILE), "")?;
        [DISK_FILE, DEVICES_FILE].iter().try_for_each(|file| own_by(&path.join(file), uid))
    };
    furnish().map_err(EngineError::kernel("hand a disk to its machine"))?;
    Ok(path)
}

fn own_by(path: &Path, uid: u32) -> std::io::Result<()> {
    chown(path, Some(uid), Some(uid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// A directory with a hole of this size: what the memory of a booting guest begins with.
pub(crate) fn zero_memory(host: &Host, memory_mib: u32) -> Result<PathBuf, EngineError> {
    let dir = host.zero_memory_dir.join(memory_mib.to_string());
    let file = dir.join(crate::vm::command_line::MEMORY_FILE);
    if !file.exists() {
        let _one_at_a_time = host.warm_starts.lock_blanks();
        fs::create_dir_all(&dir)
            .and_then(|()| create_sparse_file(&file, u64::from(memory_mib) << 20))
            .map_err(EngineError::kernel("make room for a guest's memory"))?;
    }
    Ok(dir)
}
