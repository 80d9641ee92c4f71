//! [`CriuProcess`]: one `criu swrk` process, its identity and namespaces, and its end.
//! A dump runs as the uid that owns the sandbox's user namespace: the owner may inspect everything in it. A restore starts as root,
//! inside the sandbox's control groups; `owner` changes its uid later. What both can reach is in `view`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{
    CapabilitiesSecureBits, CpuSet, UnshareFlags, sched_setaffinity, set_capabilities_secure_bits,
    unshare_unsafe,
};

use confinement::{Entrance, Root, become_user, bound_capabilities, keep_capabilities};
use sandbox_setup::ENVD_NICE;

use super::view::{self, DUMP_CAPABILITIES, RESTORE_CAPABILITIES};
use super::volume_name;
use crate::resources::BorrowedMounts;

use super::locate::Criu;
use super::rpc::{Conversation, Request, Response};

/// The descriptor at which CRIU finds its end of the socket.
const SOCKET_FD: i32 = 3;
/// Settings that only uid 0 may write, whatever the capabilities. A scratch file is mounted over them, which takes CRIU's writes; the
/// engine sets the host name itself.
const ROOT_ONLY_SETTINGS: [&str; 2] = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"];

/// What CRIU is run for, which decides its identity and namespaces.
#[derive(Clone, Copy)]
pub(super) enum CriuRole<'a> {
    /// A dump: confined, as the owner of the sandbox's user namespace. It keeps `lock` open, so the lock is held until the dump has
    /// ended, also when this server has died.
    Dump { view: &'a Root, images: &'a Path, cgroup: &'a Path, owner: u32, lock: BorrowedFd<'a> },
    /// A restore: confined, in the sandbox's control group, with its root and `/dev` mounted.
    Restore {
        view: &'a Root,
        images: &'a Path,
        cgroup: &'a Path,
        root: BorrowedFd<'a>,
        dev: BorrowedFd<'a>,
        resources: Option<BorrowedMounts<'a>>,
        volumes: &'a [OwnedFd],
        processors: Option<CpuSet>,
    },
    /// A check of the kernel: as root, with the mount `run` at `/run`.
    CheckKernel { run: BorrowedFd<'a> },
}

/// What the child does between fork and exec, with descriptors as numbers.
enum ChildSetup {
    Dump {
        entrance: Entrance,
        owner: u32,
        lock: i32,
    },
    Restore {
        entrance: Entrance,
        group: OwnedFd,
        root: i32,
        dev: i32,
        resources: Option<[i32; 2]>,
        volumes: Vec<(i32, CString)>,
        processors: Option<CpuSet>,
    },
    CheckKernel {
        run: i32,
    },
}

/// How long CRIU may take to end once its socket is closed.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A running CRIU. The drop waits for its end, and kills it if it does not end by itself.
pub(super) struct CriuProcess {
    /// Closed before the drop waits, because CRIU ends when it is closed.
    conversation: Option<Conversation>,
    child: Child,
    /// Whether CRIU and its helpers are a process group. A killed CRIU leaves its helpers behind, with everything it had open.
    leads_group: bool,
}

impl CriuProcess {
    /// Starts CRIU with `dir` for its own files. It may be silent for `timeout`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(super) fn start(criu: &Criu, dir: &Path, role: CriuRole<'_>, timeout: Duration) -> io::Result<Self> {
        let (conversation, socket) = Conversation::pair(timeout)?;
        let (mut command, run) = match role {
            CriuRole::CheckKernel { .. } => (criu.command(), dir),
            _ => (criu.command_below(Path::new(view::TOOLS)), Path::new(view::RUN)),
        };
        command
            .args(["swrk", &SOCKET_FD.to_string()])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("XDG_RUNTIME_DIR", run)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let setup = match role {
            CriuRole::Dump { view, images, cgroup, owner, lock } => ChildSetup::Dump {
                entrance: view.entrance(&[(images, view::IMAGES), (cgroup, view::CGROUP)])?,
                owner,
                lock: lock.as_raw_fd(),
            },
            CriuRole::Restore { view, images, cgroup, root, dev, resources, volumes, processors } => {
                ChildSetup::Restore {
                    entrance: view.entrance(&[(images, view::IMAGES)])?,
                    group: open(
                        cgroup.join("cgroup.procs"),
                        OFlags::WRONLY | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?,
                    root: root.as_raw_fd(),
                    dev: dev.as_raw_fd(),
                    processors,
                    resources: resources.map(|mounts| [mounts.files.as_raw_fd(), mounts.cgroup.as_raw_fd()]),
                    volumes: volumes
                        .iter()
                        .enumerate()
                        .map(|(index, mount)| {
                            Ok((mount.as_raw_fd(), CString::new(format!("/run/{}", volume_name(index)))?))
                        })
                        .collect::<io::Result<_>>()?,
                }
            }
            CriuRole::CheckKernel { run } => ChildSetup::CheckKernel { run: run.as_raw_fd() },
        };
        let leads_group = matches!(setup, ChildSetup::Dump { .. });
        let socket_number = socket.as_raw_fd();
        let prepare = move || {
            // As envd has it: a restored process may keep its niceness but not go below CRIU's.
            rustix::process::setpriority_process(None, ENVD_NICE)?;
            // Otherwise the kernel takes the capabilities away with uid 0.
            set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
            setup.apply()?;
            pass_socket(socket_number)
        };
        // SAFETY: the closure makes system calls only; it allocates nothing and takes no locks.
        let child = unsafe { command.pre_exec(prepare) }.spawn()?;
        Ok(Self { conversation: Some(conversation), child, leads_group })
    }

    /// Returns CRIU's pid.
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a request and returns the response; calls `on_notify` with the name of each notification before that and the pid in it.
    ///
    /// # Errors
    /// CRIU ended, was silent too long (`WouldBlock`), or `on_notify` failed.
    pub(super) fn ask(
        &self,
        request: &Request,
        on_notify: impl FnMut(&str, i32) -> io::Result<()>,
    ) -> io::Result<Response> {
        self.conversation.as_ref().expect("present until dropped").ask(request, on_notify)
    }

    /// Kills CRIU, which may leave the processes that it was working on stopped.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let pidfd = Pid::from_raw(self.pid()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        // Only a child that was waited for cannot be opened.
        let Some(Ok(pidfd)) = pidfd else { return true };
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
        // An interrupted wait counts as too long: CRIU is then killed early, which does no harm, as its work is done.
        matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)), Ok(ended) if ended > 0)
    }
}

impl Drop for CriuProcess {
    fn drop(&mut self) {
        self.conversation = None;
        if !self.ends_within(END_TIMEOUT) {
            self.kill();
        }
        // Before the wait: until then its pid, which is also the group's, cannot be reused.
        if let Some(pid) = Pid::from_raw(self.pid()).filter(|_| self.leads_group) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl ChildSetup {
    /// Runs in the child: makes system calls only.
    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Dump { entrance, owner, lock } => {
                // A process group, so that all of it can be killed; in another session, or the kernel would end a stopped one when the
                // server dies.
                rustix::process::setsid()?;
                pass_lock(*lock)?;
                entrance.enter(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
                become_user(*owner, None)?;
                keep_capabilities(DUMP_CAPABILITIES)
            }
            Self::Restore { entrance, group, root, dev, resources, volumes, processors } => {
                // CRIU does not restore it: the processes inherit CRIU's.
                if let Some(processors) = processors {
                    sched_setaffinity(None, processors)?;
                }
                enter_sandbox(entrance, group, *root, *dev, *resources, volumes)
            }
            Self::CheckKernel { run } => {
                // SAFETY: the child has one thread; only its own namespace changes.
                unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
                attach(*run, c"/run")
            }
        }
    }
}

/// Joins the sandbox's version 2 control group and mounts its root and `/dev`. The child is born in the version 1 groups of the calling
/// thread.
fn enter_sandbox(
    entrance: &Entrance,
    group: &OwnedFd,
    root: i32,
    dev: i32,
    resources: Option<[i32; 2]>,
    volumes: &[(i32, CString)],
) -> io::Result<()> {
    rustix::io::write(group, b"0")?;
    entrance.enter(UnshareFlags::NEWCGROUP)?;
    bound_capabilities(RESTORE_CAPABILITIES)?;
    attach(root, c"/run/root")?;
    attach(dev, c"/run/dev")?;
    if let Some([files, cgroup]) = resources {
        attach(files, c"/run/resources")?;
        attach(cgroup, c"/run/cgroup")?;
    }
    for (mount, target) in volumes {
        attach(*mount, target)?;
    }
    // The kernel allows a new /proc only while an unmodified one is visible, and this one is modified next.
    mount_bind("/proc", "/run/proc")?;
    for setting in ROOT_ONLY_SETTINGS {
        mount_bind("/run/scratch", setting)?;
    }
    Ok(())
}

/// Attaches a detached mount at the path `target`.
fn attach(mount: i32, target: &CStr) -> io::Result<()> {
    // SAFETY: the parent keeps it open until the child has executed CRIU.
    let mount = unsafe { BorrowedFd::borrow_raw(mount) };
    Ok(sys::attach_at(mount, target)?)
}

/// Makes a copy of the lock's descriptor that survives `execve`, at a number that the socket does not need.
fn pass_lock(descriptor: i32) -> io::Result<()> {
    let min_number = SOCKET_FD as usize + 1;
    // SAFETY: makes a new descriptor in this process's own table.
    unsafe {
        sys::syscall(libc::SYS_fcntl, [descriptor as usize, libc::F_DUPFD as usize, min_number, 0, 0, 0])
    }?;
    Ok(())
}

/// Puts the socket at the descriptor that CRIU's arguments name.
fn pass_socket(socket: i32) -> io::Result<()> {
    // SAFETY: raw calls on this process's own descriptor table; the overwritten descriptor is not used any more.
    unsafe {
        if socket == SOCKET_FD {
            sys::syscall(libc::SYS_fcntl, [SOCKET_FD as usize, libc::F_SETFD as usize, 0, 0, 0, 0])?;
        } else {
            sys::syscall(libc::SYS_dup3, [socket as usize, SOCKET_FD as usize, 0, 0, 0, 0])?;
        }
    }
    Ok(())
}
