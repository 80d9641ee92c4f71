//! The sandbox's `/dev`: six harmless device nodes, the usual links, and empty directories to mount
//! on; the same as in containers.
//!
//! The guest agent has it under a path of its own too, where it can change the file that is mounted
//! over the kernel's boot id. The VM's real devices are in the guest agent's `/dev` only.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use sandbox_setup::dev;

use crate::error::InitError;

/// The guest agent's writable mount of it.
const WRITABLE: &str = "/sandbox-dev";
/// The read-only mount of it that the sandbox gets.
pub(crate) const READ_ONLY: &str = "/sandbox-dev-view";
/// The open file with the boot id that the sandbox sees.
#[derive(Debug)]
pub(crate) struct BootId(File);

/// Creates the sandbox's `/dev`.
///
/// # Errors
/// The kernel refuses a mount or node.
pub(crate) fn make() -> Result<BootId, InitError> {
    fill().map(BootId).map_err(InitError::kernel("make the sandbox's /dev"))
}

fn fill() -> io::Result<File> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("cofferdam-dev", WRITABLE, "tmpfs", flags, Some(c"mode=0755,size=64k"))?;
    let own = fs::read_to_string(dev::KERNEL_BOOT_ID)?;
    let boot_id = dev::populate(File::open(WRITABLE)?.as_fd(), own.trim_end())?;
    mount_bind(WRITABLE, READ_ONLY)?;
    mount_remount(READ_ONLY, flags | MountFlags::BIND | MountFlags::RDONLY, "")?;
    Ok(boot_id.into())
}

impl BootId {
    /// Changes the boot id that the sandbox sees.
    ///
    /// # Errors
    /// `id` is not a UUID.
    pub(crate) fn set(&self, id: &str) -> Result<(), InitError> {
        let is_uuid = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !is_uuid {
            return Err(InitError::Request(format!("{id:?} is not a boot id; send a UUID")));
        }
        // All ids have the same length.
        self.0.write_all_at(id.as_bytes(), 0).map_err(InitError::kernel("set the boot id"))
    }
}
