//! The child that executes envd: the first process of a PID namespace, which enters new namespaces
//! for everything but the network.
//!
//! It sees the overlay as its root and a small `/dev`, but neither the guest agent nor the VM's
//! disks and ports. If a step fails it writes the error to its standard output, which the guest
//! agent reads; a successful `exec` closes that.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use guest_api::network::HOST_V4;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, mount_bind, mount_change, mount_move,
    mount_remount, open_tree,
};
use rustix::process::{chdir, chroot, fchdir, setpriority_process};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use rustix::thread::UnshareFlags;
use sandbox_setup::{ENVD_NICE, ENVD_PATH, MAX_OPEN_FILES, dev};
use sys::{attach_mount, mount_new};

use crate::error::InitError;
use crate::{boot, cgroup, devices};

/// Host name until the host sets another one.
pub(crate) const HOSTNAME: &str = "sandbox";
/// Maximum number of connections that wait for envd to accept them.
const BACKLOG: i32 = 1024;

/// Executes envd; returns only if that fails.
pub(crate) fn run() -> InitError {
    match become_envd() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_envd() -> Result<std::convert::Infallible, InitError> {
    // First, so that its descriptor is 3 as in containers.
    let listener = listen().map_err(InitError::kernel("listen for envd"))?;
    let shm_mib = std::env::args().nth(2).unwrap_or_default();
    cgroup::join().map_err(InitError::kernel("enter the control group"))?;
    // User code inherits this and must be what the OOM killer chooses.
    fs::write("/proc/self/oom_score_adj", "0")
        .map_err(InitError::kernel("reset the OOM score adjustment"))?;
    setpriority_process(None, ENVD_NICE).map_err(InitError::kernel("set the priority of envd"))?;
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP;
    sys::enter_new_namespaces(own).map_err(InitError::kernel("make namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(InitError::kernel("make mounts private"))?;
    mount_all(&shm_mib)?;
    rustix::system::sethostname(HOSTNAME.as_bytes()).map_err(InitError::kernel("set the host name"))?;
    set_limits().map_err(InitError::kernel("set limits"))?;
    let output = arrange_descriptors(&listener).map_err(InitError::kernel("arrange descriptors"))?;
    let error = Command::new(ENVD_PATH)
        .args(["--listen-fd", &listener.as_raw_fd().to_string()])
        .args(["--server", &HOST_V4.to_string()])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .exec();
    // Restores the output that the guest agent reads.
    let _ = dup2_stdout(&output);
    Err(InitError::kernel("execute envd")(error))
}

fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, envd_api::PORT))?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn mount_all(shm_mib: &str) -> Result<(), InitError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(boot::ROOT, flags, Mode::empty()).map_err(InitError::kernel("open the root"))?;
    mount_new("proc", &root, "proc", &[], MountAttrFlags::empty())
        .map_err(InitError::kernel("mount /proc"))?;
    mount_dev(&root, shm_mib).map_err(InitError::kernel("mount /dev"))?;
    mount_new("sysfs", &root, "sys", &[], MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(InitError::kernel("mount /sys"))?;
    // After the cgroup namespace was made, so that its root is the group of user code.
    mount_new("cgroup2", &root, "sys/fs/cgroup", &[], MountAttrFlags::empty())
        .map_err(InitError::kernel("mount /sys/fs/cgroup"))?;
    switch_root(&root).map_err(InitError::kernel("change the root"))?;
    let boot_id = format!("/dev/{}", dev::BOOT_ID);
    let hide = || {
        mount_bind(&boot_id, dev::KERNEL_BOOT_ID)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
        mount_remount(dev::KERNEL_BOOT_ID, flags, "")
    };
    hide().map_err(InitError::kernel("hide the boot id"))
}

fn mount_dev(root: &OwnedFd, shm_mib: &str) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    attach_mount(open_tree(CWD, devices::READ_ONLY, flags)?, root, "dev")?;
    let shm_size = CString::new(format!("{shm_mib}m")).expect("an argument has no zero in it");
    dev::mount_inside(root, &shm_size)
}

/// Changes the root. Not by `pivot_root`, which does not work in an initramfs: the new root is
/// mounted over the old one, as after every boot.
fn switch_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")
}

fn set_limits() -> io::Result<()> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let pids = guest_api::BootOptions::parse(&cmdline).map_err(io::Error::other)?.pids;
    Ok(sandbox_setup::set_limits(pids.into(), MAX_OPEN_FILES)?)
}

/// Makes descriptors 0 to 2 the sandbox's `/dev/null` and keeps the listener open for envd; returns
/// the previous output.
fn arrange_descriptors(listener: &TcpListener) -> Result<OwnedFd, Errno> {
    let output = fcntl_dupfd_cloexec(rustix::stdio::stdout(), 0)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    fcntl_setfd(listener, FdFlags::empty())?;
    Ok(output)
}
