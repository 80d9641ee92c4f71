//! One `criu swrk` process: who it is, where it runs, and its end.
//! A dump runs as the uid that owns the sandbox's user namespace, with the host's capabilities: owners may look at everything in it.
//! A restore begins as root, inside the sandbox's control groups and in a mount namespace of its own; see `owner` for the rest.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_bind, mount_change, move_mount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags, capabilities,
    configure_capability_in_ambient_set, set_capabilities, set_capabilities_secure_bits, unshare_unsafe,
};

use super::locate::Criu;
use super::rpc::{Conversation, Request, Response};

/// Where the process finds its end of the conversation.
const SOCKET_FD: i32 = 3;
/// As envd has it: a restored process may keep its niceness but not go below CRIU's.
const NICE: i32 = -10;

/// Settings of namespaces that only uid 0 may write, whatever its capabilities. CRIU writes them into a scratch file; the
/// names are set by us, the others have their defaults, which a sandbox cannot change.
const ROOTS_SETTINGS: [&str; 2] = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"];

/// Where CRIU runs.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// Beside the server, as the owner of the sandbox's user namespace: a dump.
    /// It keeps `lock` open: whoever waits for that waits for the dump, also when this server has died.
    Beside { owner: u32, lock: BorrowedFd<'a> },
    /// Where the sandbox will be: a restore.
    Sandbox { cgroup: &'a Path, root: BorrowedFd<'a>, dev: BorrowedFd<'a> },
    /// Beside the server as root, with this mount at `/run`: to learn about the kernel.
    Alone { run: BorrowedFd<'a> },
}

/// What the new process needs for its place.
enum Entry {
    Owner(u32, i32),
    Sandbox { group: OwnedFd, dir: PathBuf, root: i32, dev: i32 },
    Alone(i32),
}

/// How long it may take to end once nobody talks to it any more.
const MAX_END: Duration = Duration::from_secs(30);

/// A running CRIU. Waits for its end when dropped, and brings it about if it does not come.
pub(super) struct Process {
    /// Dropped by hand before the wait, because CRIU ends when it closes.
    conversation: Option<Conversation>,
    child: Child,
    /// Whether its helpers are in a process group with it: one that is killed leaves them behind, with all it had open.
    leads_group: bool,
}

impl Process {
    /// Starts it with `directory` for its own files.
    pub(super) fn start(criu: &Criu, dir: &Path, place: Place<'_>, patience: Duration) -> io::Result<Self> {
        let (conversation, socket) = Conversation::pair(patience)?;
        let mut command = criu.command();
        command
            .args(["swrk", &SOCKET_FD.to_string()])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("XDG_RUNTIME_DIR", dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let entry = match place {
            Place::Beside { owner, lock } => Entry::Owner(owner, lock.as_raw_fd()),
            Place::Sandbox { cgroup, root, dev } => Entry::Sandbox {
                group: open(cgroup.join("cgroup.procs"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?,
                dir: dir.to_owned(),
                root: root.as_raw_fd(),
                dev: dev.as_raw_fd(),
            },
            Place::Alone { run } => Entry::Alone(run.as_raw_fd()),
        };
        let leads_group = matches!(entry, Entry::Owner(..));
        let socket_number = socket.as_raw_fd();
        let prepare = move || {
            rustix::process::setpriority_process(None, NICE)?;
            // Or the kernel would take the capabilities away with uid 0.
            set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
            match &entry {
                Entry::Owner(owner, lock) => {
                    // A group with whatever it starts, so that all of it can be ended; of another session, or the kernel would
                    // end a stopped one when the server dies.
                    rustix::process::setsid()?;
                    keep_open(*lock)?;
                    become_owner(*owner)?;
                }
                Entry::Sandbox { group, dir, root, dev } => enter(group, dir, *root, *dev)?,
                Entry::Alone(run) => {
                    // SAFETY: this is a process of one thread; its own namespace changes.
                    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
                    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
                    attach(*run, "/run")?;
                }
            }
            inherit(socket_number)
        };
        // SAFETY: the closure makes system calls only; it allocates nothing and takes no locks.
        let child = unsafe { command.pre_exec(prepare) }.spawn()?;
        Ok(Self { conversation: Some(conversation), child, leads_group })
    }

    /// Its pid.
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(super) fn ask(
        &self,
        request: &Request,
        on_notify: impl FnMut(&str, i32) -> io::Result<()>,
    ) -> io::Result<Response> {
        self.conversation.as_ref().expect("present until dropped").ask(request, on_notify)
    }
}

impl Process {
    /// For one that does not end by itself. The caller sees to what it was working on.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

impl Process {
    fn ends_within(&self, limit: Duration) -> bool {
        let pidfd = Pid::from_raw(self.pid()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        // Only a child that was waited for has no pidfd.
        let Some(Ok(pidfd)) = pidfd else { return true };
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
        // A wait that is interrupted counts as too long: it is ended for nothing, and that harms nobody.
        matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)), Ok(ended) if ended > 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.conversation = None;
        if !self.ends_within(MAX_END) {
            self.kill();
        }
        // Before it is waited for: until then its pid, and with it the group's, cannot come to mean another.
        if let Some(pid) = Pid::from_raw(self.pid()).filter(|_| self.leads_group) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Moves into the sandbox's place. The version 1 groups are the calling thread's already.
fn enter(group: &OwnedFd, dir: &Path, root: i32, dev: i32) -> io::Result<()> {
    rustix::io::write(group, b"0")?;
    // SAFETY: this is a process of one thread; its own namespaces change.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // CRIU keeps what it knows about the kernel in /run.
    mount_bind(dir, "/run")?;
    attach(root, "/run/root")?;
    attach(dev, "/run/dev")?;
    // A new /proc may only be mounted where an untouched one can be seen, and ours is touched next.
    mount_bind("/proc", "/run/proc")?;
    for setting in ROOTS_SETTINGS {
        mount_bind("/run/scratch", setting)?;
    }
    Ok(())
}

/// Puts a detached mount somewhere.
fn attach(mount: i32, target: &str) -> io::Result<()> {
    // SAFETY: the caller keeps it open until the process has started.
    let mount = unsafe { BorrowedFd::borrow_raw(mount) };
    Ok(move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Another uid with the same capabilities, across the `execve` that follows.
fn become_owner(owner: u32) -> io::Result<()> {
    let have = capabilities(None)?;
    // SAFETY: raw calls that change this process's credentials only.
    unsafe {
        let owner = owner as usize;
        sys::syscall(libc::SYS_setgroups, [0; 6])?;
        sys::syscall(libc::SYS_setresuid, [owner, owner, owner, 0, 0, 0])?;
    }
    let all = have.permitted;
    set_capabilities(None, CapabilitySets { effective: all, permitted: all, inheritable: all })?;
    for bit in 0..64 {
        if let Some(capability) = CapabilitySet::from_bits(1 << bit).filter(|one| all.contains(*one)) {
            configure_capability_in_ambient_set(capability, true)?;
        }
    }
    Ok(())
}

/// Has a copy of a descriptor go through `execve`, out of the way of the socket.
fn keep_open(descriptor: i32) -> io::Result<()> {
    let least = SOCKET_FD as usize + 1;
    // SAFETY: makes a new descriptor in this process's own table.
    unsafe { sys::syscall(libc::SYS_fcntl, [descriptor as usize, libc::F_DUPFD as usize, least, 0, 0, 0]) }?;
    Ok(())
}

/// Puts the socket where CRIU is told to look.
fn inherit(socket: i32) -> io::Result<()> {
    // SAFETY: raw calls on this process's own descriptor table; the number overwritten is needed by nobody.
    unsafe {
        if socket == SOCKET_FD {
            sys::syscall(libc::SYS_fcntl, [SOCKET_FD as usize, libc::F_SETFD as usize, 0, 0, 0, 0])?;
        } else {
            sys::syscall(libc::SYS_dup3, [socket as usize, SOCKET_FD as usize, 0, 0, 0, 0])?;
        }
    }
    Ok(())
}
