//! The sandbox's `/dev`: six harmless device nodes, the usual links, and empty directories to mount
//! on; the same as in containers.
//!
//! The guest agent has it under a path of its own too, where it can change the file that is mounted
//! over the kernel's boot id. The VM's real devices are in the guest agent's `/dev` only.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};

use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use crate::error::InitError;

/// Name, major and minor number of each node.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
const DIRS: [&str; 3] = ["pts", "shm", "mqueue"];
/// The guest agent's writable mount of it.
const WRITABLE: &str = "/sandbox-dev";
/// The read-only mount of it that the sandbox gets.
pub(crate) const READ_ONLY: &str = "/sandbox-dev-view";
/// File that is mounted over the kernel's boot id, which all clones of one snapshot share.
pub(crate) const BOOT_ID: &str = ".boot_id";
/// The kernel's boot id.
pub(crate) const KERNELS_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        let path = format!("{WRITABLE}/{name}");
        mknodat(CWD, &path, FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // `mknod` has applied the umask.
        chmod(&path, everyone)?;
    }
    LINKS.iter().try_for_each(|(name, target)| symlink(target, format!("{WRITABLE}/{name}")))?;
    DIRS.iter().try_for_each(|name| fs::create_dir(format!("{WRITABLE}/{name}")))?;
    let own = fs::read_to_string(KERNELS_BOOT_ID)?;
    let boot_id = File::create_new(format!("{WRITABLE}/{BOOT_ID}"))?;
    boot_id.write_all_at(own.as_bytes(), 0)?;
    chmod(format!("{WRITABLE}/{BOOT_ID}"), Mode::from_raw_mode(0o444))?;
    mount_bind(WRITABLE, READ_ONLY)?;
    mount_remount(READ_ONLY, flags | MountFlags::BIND | MountFlags::RDONLY, "")?;
    Ok(boot_id)
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
