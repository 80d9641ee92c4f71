//! Starts QEMU so that it can do nothing but run its guest: with its own user id and control group,
//! in the sandbox's network namespace, and with a mount namespace that has QEMU's program and its
//! guest's files only. QEMU's own seccomp filter is added to that (`-sandbox`).
//!
//! Code that breaks out of the guest into QEMU is confined by this.

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::process::{Resource, Rlimit, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, disable_transparent_huge_pages,
    move_into_link_name_space, set_no_new_privs, unshare_unsafe,
};
use sys::{Namespace, seal_mount, syscall};

/// A directory or file of the host that QEMU sees: a detached bind mount.
#[derive(Debug)]
pub(crate) struct BindMount {
    mount: OwnedFd,
    target: CString,
}

impl BindMount {
    /// Prepares the mount of `path` at `target`, a path that exists in QEMU's root.
    ///
    /// # Errors
    /// `path` does not exist.
    pub(crate) fn new(path: &Path, target: &str, read_only: bool) -> io::Result<Self> {
        let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        seal_mount(mount.as_fd(), read_only)?;
        Ok(Self { mount, target: CString::new(target)? })
    }
}

/// Everything that QEMU is started with.
#[derive(Debug)]
pub(crate) struct QemuLaunch<'a> {
    /// Path of the program in its root directory.
    pub(crate) program: &'a str,
    pub(crate) arguments: Vec<OsString>,
    /// Its root directory: the program, its libraries and firmware.
    pub(crate) root: BindMount,
    /// An empty directory of the host that the root is mounted on, in QEMU's own mount namespace.
    pub(crate) root_target: &'a Path,
    pub(crate) mounts: Vec<BindMount>,
    pub(crate) network: &'a Namespace,
    /// Files through which a process joins its control groups.
    pub(crate) groups: Vec<std::path::PathBuf>,
    /// User and group id of the process; no other process has it.
    pub(crate) uid: u32,
    /// Maximum size of files that it writes, bytes.
    pub(crate) max_file_bytes: u64,
    /// Descriptors that it inherits, under the same numbers.
    pub(crate) inherited: Vec<RawFd>,
    /// Receives its standard error.
    pub(crate) log: fs::File,
}

/// Starts QEMU.
///
/// # Errors
/// The kernel refuses a step. Which one is unknown: the child can report no more than an error
/// number.
pub(crate) fn spawn_qemu(launch: QemuLaunch<'_>) -> io::Result<Child> {
    let QemuLaunch { program, arguments, root, root_target, mounts, network, groups, uid, .. } = launch;
    let QemuLaunch { max_file_bytes, inherited, log, .. } = launch;
    let root_target = CString::new(root_target.as_os_str().as_bytes())?;
    let groups: Vec<CString> =
        groups.iter().map(|path| CString::new(path.as_os_str().as_bytes())).collect::<Result<_, _>>()?;
    let network = network.as_fd().as_raw_fd();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let confine = move || {
        // This closure must not allocate or lock: the server that was forked had other threads.
        groups.iter().try_for_each(|file| join_group(file))?;
        // SAFETY: the descriptor is a copy of one that the caller keeps open through the fork.
        let network = unsafe { std::os::fd::BorrowedFd::borrow_raw(network) };
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        let _ = setsid();
        // SAFETY: this process has one thread and shares nothing with the server.
        unsafe {
            unshare_unsafe(
                UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP,
            )
        }?;
        change_root(&root, &root_target, &mounts)?;
        for fd in &inherited {
            // SAFETY: as above.
            fcntl_setfd(unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) }, FdFlags::empty())?;
        }
        limit(max_file_bytes)?;
        join_own_keyring()?;
        drop_privileges(uid)
    };
    // SAFETY: the closure makes system calls only, as is right between fork and exec.
    unsafe { command.pre_exec(confine) };
    command.spawn()
}

fn join_group(file: &CStr) -> io::Result<()> {
    let file = open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, b"0")?;
    Ok(())
}

fn change_root(root: &BindMount, target: &CStr, mounts: &[BindMount]) -> io::Result<()> {
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let by_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let top = sys::attach_and_open(&root.mount, target)?;
    for mount in mounts {
        // Relative to the root: targets have no leading slash and the tree is ours, without links.
        move_mount(&mount.mount, c"", &top, mount.target.as_c_str(), by_fd)?;
    }
    Ok(sys::change_root(&top)?)
}

fn limit(max_file_bytes: u64) -> io::Result<()> {
    // The tree has a limit too, where the file system supports limits.
    let size = Rlimit { current: Some(max_file_bytes), maximum: Some(max_file_bytes) };
    setrlimit(Resource::Fsize, size)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    let files = Rlimit { current: Some(1024), maximum: Some(1024) };
    setrlimit(Resource::Nofile, files)?;
    // The emulator asks for huge pages for its translations, most of which a short life never
    // makes. A guest's memory is mapped from a file, which has none.
    Ok(disable_transparent_huge_pages(true)?)
}

/// Joins a session keyring of its own. Otherwise all VMs could read and write the server's.
fn join_own_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: a raw call that changes this process's credentials only; the name is null.
    match unsafe { syscall(libc::SYS_keyctl, [JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0]) } {
        // The kernel has no keyrings.
        Err(error) if error.0 == libc::ENOSYS => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

fn drop_privileges(uid: u32) -> io::Result<()> {
    sys::limit_bounding_set(CapabilitySet::empty())?;
    let id = uid as usize;
    // SAFETY: raw calls that change this process's credentials only.
    unsafe {
        syscall(libc::SYS_setgroups, [0; 6])?;
        syscall(libc::SYS_setresgid, [id, id, id, 0, 0, 0])?;
        syscall(libc::SYS_setresuid, [id, id, id, 0, 0, 0])?;
    }
    Ok(set_no_new_privs(true)?)
}
