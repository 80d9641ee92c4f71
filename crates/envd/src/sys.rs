//! System calls without a safe wrapper: taking over an inherited socket, the child's side of a fork, and a thread's
//! rights in file systems.

//! All that the child needs between fork and exec is prepared before the fork: the child must not allocate.

#![allow(unsafe_code, reason = "fork, exec and inherited descriptors have no safe interface")]

use std::ffi::CString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::OnceLock;

use rustix::process::{DumpableBehavior, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio::io::unix::AsyncFd;

/// Takes over a listening socket that this process inherited as `fd`.
pub fn inherited_listener(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: `fcntl` with `F_SETFD` accesses no memory, whatever the number is.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and the command line names it for this use only: nothing
    // else in this process has taken it, because this runs before anything else opens or takes descriptors.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    listener.local_addr()?;
    Ok(listener)
}

/// Closes every descriptor from 3 up, except `keep`: no descriptor of the server may leak into a sandbox.
pub fn close_inherited(keep: Option<RawFd>) {
    let close = |first: u32, last: u32| {
        if first > last {
            return;
        }
        // SAFETY: runs first thing in `main`, when no Rust object owns a descriptor above 2.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    match keep.and_then(|fd| u32::try_from(fd).ok()) {
        Some(keep) => {
            close(3, keep.saturating_sub(1));
            close(keep.max(2) + 1, u32::MAX);
        }
        None => close(3, u32::MAX),
    }
}

/// A program for the child to execute, prepared so that the child need not allocate.
#[derive(Debug)]
pub struct Program {
    /// Paths to try, in order.
    pub candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: CString,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Whether standard input is a terminal, which becomes the controlling terminal.
    pub terminal: bool,
    /// The limit on open files to restore, since envd has raised its own.
    pub open_files: Rlimit,
    /// Message of a shell if the program does not exist.
    pub not_found: Vec<u8>,
    /// Message of a shell if the program is not executable.
    pub not_allowed: Vec<u8>,
}

/// Starts `program` and returns its process id. A missing program is not an error here: the child writes a
/// message to its standard error and exits with 127 (126 if it is not executable), like under a shell.
///
/// The caller must prevent reaping until it has recorded the id.
pub fn spawn(program: Program, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> io::Result<u32> {
    let child = Child::new(program);
    // The name is never used: the child executes the program itself, before the standard library would.
    let mut command = Command::new("/");
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    // SAFETY: `Child::run` makes only async-signal-safe system calls on memory prepared before the fork.
    unsafe { command.pre_exec(move || child.run()) };
    Ok(command.spawn()?.id())
}

/// A null-terminated array of pointers for `execve`, with the strings that it points to.
struct Pointers {
    pointers: Vec<*const libc::c_char>,
    /// Owns what `pointers` points to.
    _strings: Vec<CString>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

struct Child {
    program: Program,
    argv: Pointers,
    /// `sh path args…` for scripts without a `#!` line. The child fills in the path, which is at index 1.
    shell_argv: Pointers,
    env: Pointers,
    limit: libc::rlimit,
}

// SAFETY: the pointers point to strings owned by the same value, whose heap memory does not move with it.
unsafe impl Send for Child {}
// SAFETY: as above, and shared references change nothing.
unsafe impl Sync for Child {}

impl Child {
    fn new(mut program: Program) -> Self {
        let argv = std::mem::take(&mut program.argv);
        let mut shell = vec![c"/bin/sh".to_owned(), c"".to_owned()];
        shell.extend(argv.iter().skip(1).cloned());
        let infinity = |value: Option<u64>| value.unwrap_or(libc::RLIM_INFINITY);
        Self {
            argv: Pointers::new(argv),
            shell_argv: Pointers::new(shell),
            env: Pointers::new(std::mem::take(&mut program.env)),
            limit: libc::rlimit {
                rlim_cur: infinity(program.open_files.current),
                rlim_max: infinity(program.open_files.maximum),
            },
            program,
        }
    }

    /// Runs in the child. The parent receives an error as a failure to start.
    fn run(&self) -> io::Result<()> {
        let program = &self.program;
        // SAFETY: plain system calls; all pointers are to `self`, which outlives them. The identity is changed by
        // raw system calls: the C library's wrappers would change other threads too.
        unsafe {
            libc::setsid();
            if program.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
            }
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            prefer_for_oom();
            // envd may have a higher priority than user code should have.
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.limit);
            check_long(libc::syscall(libc::SYS_setgroups, program.groups.len(), program.groups.as_ptr()))?;
            check_long(libc::syscall(libc::SYS_setgid, program.gid))?;
            check_long(libc::syscall(libc::SYS_setuid, program.uid))?;
            check(libc::chdir(program.cwd.as_ptr()))?;
        }
        self.exec()
    }

    fn exec(&self) -> io::Result<()> {
        let mut allowed = true;
        for path in &self.program.candidates {
            // SAFETY: path, arguments and environment are null-terminated and outlive the call.
            unsafe { libc::execve(path.as_ptr(), self.argv.pointers.as_ptr(), self.env.pointers.as_ptr()) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES | libc::EISDIR) => allowed = false,
                Some(libc::ENOEXEC) => return Err(self.exec_script(path)),
                _ => return Err(error),
            }
        }
        let (message, code) =
            if allowed { (&self.program.not_found, 127) } else { (&self.program.not_allowed, 126) };
        // SAFETY: the buffer is valid for its length; `_exit` runs no exit handlers.
        unsafe {
            libc::write(2, message.as_ptr().cast(), message.len());
            libc::_exit(code)
        }
    }

    /// Executes a text file without an interpreter line by the shell. Returns only on failure.
    fn exec_script(&self, path: &CString) -> io::Error {
        let shell = self.shell_argv.pointers.as_ptr().cast_mut();
        // SAFETY: index 1 exists (`new` filled it), only this child has this memory, and the array is
        // only read by the kernel. All strings are null-terminated and outlive the call.
        unsafe {
            shell.add(1).write(path.as_ptr());
            libc::execve(c"/bin/sh".as_ptr(), shell, self.env.pointers.as_ptr());
        }
        io::Error::last_os_error()
    }
}

/// Makes the kernel kill user code before envd when memory runs out. Best effort: /proc may be hidden.
fn prefer_for_oom() {
    // SAFETY: the buffers are valid constants, and the descriptor is owned by this function.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, b"100".as_ptr().cast(), 3);
            libc::close(fd);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a descriptor, so that its readiness can be awaited.
pub fn awaitable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Opens `/dev/null`, for a process without input.
pub fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}

/// Credentials of envd's threads that do not act for a user.
struct OwnCredentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: CapabilitySets,
    dumpable: DumpableBehavior,
}

/// Returns envd's own credentials. The first call must come from a thread that does not act for a user.
fn own_credentials() -> io::Result<&'static OwnCredentials> {
    static OWN: OnceLock<OwnCredentials> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let own = OwnCredentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect(),
        capabilities: rustix::thread::capabilities(None)?,
        dumpable: rustix::process::dumpable_behavior()?,
    };
    Ok(OWN.get_or_init(|| own))
}

/// Gives the thread its own credentials back when it is dropped.
struct ActingThread(&'static OwnCredentials);

/// Runs `action` with the rights that a process of these ids has in file systems; this thread alone is changed.
///
/// # Errors
/// The kernel refused, for example since an id is not mapped into the sandbox; `action` did not run then.
pub fn with_rights_of<T>(uid: u32, gid: u32, groups: &[u32], action: impl FnOnce() -> T) -> io::Result<T> {
    let acting = ActingThread(own_credentials()?);
    set_groups(groups)?;
    if set_filesystem_ids(uid, gid) != (uid, gid) {
        return Err(rustix::io::Errno::PERM.into());
    }
    // A changed user id drops the capabilities over files; the others have uses in /proc.
    let capabilities = CapabilitySets { effective: CapabilitySet::empty(), ..acting.0.capabilities };
    rustix::thread::set_capabilities(None, capabilities)?;
    Ok(action())
}

impl Drop for ActingThread {
    fn drop(&mut self) {
        let own = self.0;
        // A failure (no memory) leaves the thread with fewer rights than it should have, never with more.
        let _ = rustix::thread::set_capabilities(None, own.capabilities);
        let _ = set_filesystem_ids(own.uid, own.gid);
        let _ = set_groups(&own.groups);
        // The kernel clears it for the whole process when a thread's ids change.
        let _ = rustix::process::set_dumpable_behavior(own.dumpable);
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one slice. A raw system call: the C library's function would
    // change every thread.
    check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// Sets the ids and returns those that the thread has then: these calls report no failure.
fn set_filesystem_ids(uid: u32, gid: u32) -> (u32, u32) {
    let set = |number: libc::c_long, id: u32| {
        // SAFETY: these calls change this thread's credentials only and take no pointers. Each returns the id from
        // before the call, so that the second one tells whether the first one worked.
        let now = unsafe {
            libc::syscall(number, id);
            libc::syscall(number, id)
        };
        u32::try_from(now).unwrap_or(u32::MAX)
    };
    let gid = set(libc::SYS_setfsgid, gid);
    (set(libc::SYS_setfsuid, uid), gid)
}
