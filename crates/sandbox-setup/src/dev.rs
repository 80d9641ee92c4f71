//! The content of a sandbox's `/dev`: six harmless device nodes, the usual links, and the file systems mounted on its directories.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chmodat, fchmod, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sys::mount_new;

/// Name, major and minor number of each node.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Name and target of each symbolic link.
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Directories to mount on.
const DIRS: [&str; 3] = ["pts", "shm", "mqueue"];

/// Name of the file with the sandbox's boot id. It is mounted over [`KERNEL_BOOT_ID`]: a restored sandbox keeps its boot id, a cold
/// start has a new one.
pub const BOOT_ID: &str = ".boot_id";
/// Where the kernel shows the boot id of the host or of the VM.
pub const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Creates nodes, links, directories and the file with the boot id in the empty directory `dev`. Returns that file, open for
/// writing.
///
/// # Errors
/// The kernel refused; making nodes needs `CAP_MKNOD`.
pub fn populate(dev: BorrowedFd<'_>, boot_id: &str) -> io::Result<OwnedFd> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in NODES {
        mknodat(dev, name, FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // The umask of the process has removed bits.
        chmodat(dev, name, everyone, AtFlags::empty())?;
    }
    LINKS.iter().try_for_each(|(name, target)| symlinkat(*target, dev, *name))?;
    DIRS.iter().try_for_each(|name| mkdirat(dev, *name, Mode::from_raw_mode(0o755)))?;
    let readable = Mode::from_raw_mode(0o444);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(dev, BOOT_ID, flags, readable)?;
    fchmod(&file, readable)?;
    rustix::io::write(&file, format!("{boot_id}\n").as_bytes())?;
    Ok(file)
}

/// Mounts terminals, shared memory and message queues inside the `/dev` of the open root directory `root`. `shm_size` is the size of
/// `/dev/shm` as a mount option, such as `512m`.
///
/// # Errors
/// The kernel refused.
pub fn mount_inside(root: impl AsFd, shm_size: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dev = openat(root, c"dev", flags, Mode::empty())?;
    let none = MountAttrFlags::empty();
    let options = [("ptmxmode", c"0666"), ("mode", c"0620"), ("gid", c"5"), ("max", c"256")];
    mount_new("devpts", &dev, "pts", &options, none)?;
    mount_new("tmpfs", &dev, "shm", &[("mode", c"1777"), ("size", shm_size)], none)?;
    mount_new("mqueue", &dev, "mqueue", &[], none)
}
