//! The calls that no safe crate offers: taking over an inherited socket, and the child's side of a fork.
//! This is the only module with unsafe code.
//! Everything the child does between fork and exec is prepared here beforehand: it must not allocate.

#![allow(unsafe_code, reason = "fork, exec and inherited descriptors have no safe form")]

use std::ffi::CString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;

use rustix::process::Rlimit;
use tokio::io::unix::AsyncFd;

/// Takes over a listening socket that the parent left open as `fd`.
pub fn inherited_listener(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: `fcntl` with `F_SETFD` touches no memory, whatever the number is.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and the command line gives it to us alone: nothing
    // else in this process has taken it, because this runs before anything else opens or takes descriptors.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    listener.local_addr()?;
    Ok(listener)
}

/// Closes every descriptor from 3 up, except `keep`: nothing of the parent's may live on in a sandbox.
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

/// A program to become, with nothing left to compute.
#[derive(Debug)]
pub struct Program {
    /// Paths to try, in order.
    pub candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Where to start.
    pub cwd: CString,
    /// Whom to become.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
    /// The user's other groups.
    pub groups: Vec<u32>,
    /// Standard input is a terminal to be taken as the controlling one.
    pub terminal: bool,
    /// The limit on open files to go back to: envd raises its own.
    pub open_files: Rlimit,
    /// What a shell would say when there is no such program.
    pub not_found: Vec<u8>,
    /// What a shell would say when the program may not be run.
    pub not_allowed: Vec<u8>,
}

/// Starts `program` and gives its process id. A program that is missing is no error here: the child says
/// so on its standard error and exits with 127 (126 if it may not be run), as it would under a shell.
///
/// The caller must keep the reaper out until it has recorded the id.
pub fn spawn(program: Program, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> io::Result<u32> {
    let child = Child::new(program);
    // The name is never used: the child execs on its own terms before the standard library would.
    let mut command = Command::new("/");
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    // SAFETY: `Child::run` makes only async-signal-safe system calls on memory prepared before the fork.
    unsafe { command.pre_exec(move || child.run()) };
    Ok(command.spawn()?.id())
}

/// A null-terminated array of pointers for `execve`, beside the strings it points into.
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
    /// `sh path args…`, with the path's slot (1) still to fill: for scripts without a `#!` line.
    shell_argv: Pointers,
    env: Pointers,
    limit: libc::rlimit,
}

// SAFETY: the pointers lead into strings owned by the same value, whose heap memory does not move with it.
unsafe impl Send for Child {}
// SAFETY: as above, and nothing is changed through a shared reference.
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

    /// Runs in the child. An error travels back to the parent as a failure to start.
    fn run(&self) -> io::Result<()> {
        let program = &self.program;
        // SAFETY: plain system calls; the only pointers are to `self`, which outlives them. Raw system calls
        // are used for the identity: the C library's wrappers would look for other threads to change too.
        unsafe {
            libc::setsid();
            if program.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
            }
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            prefer_for_oom();
            // We may run with a better priority than user code should.
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
        // SAFETY: the buffer is valid for its length; `_exit` runs nothing of the parent's.
        unsafe {
            libc::write(2, message.as_ptr().cast(), message.len());
            libc::_exit(code)
        }
    }

    /// A text file without an interpreter line is the shell's to run.
    fn exec_script(&self, path: &CString) -> io::Error {
        let shell = self.shell_argv.pointers.as_ptr().cast_mut();
        // SAFETY: slot 1 exists (`new` filled it), this child is the only one to see it, and the array is
        // read by the kernel alone. All strings are null-terminated and outlive the call.
        unsafe {
            shell.add(1).write(path.as_ptr());
            libc::execve(c"/bin/sh".as_ptr(), shell, self.env.pointers.as_ptr());
        }
        io::Error::last_os_error()
    }
}

/// When memory runs out, user code goes before envd. Best effort: /proc may be hidden.
fn prefer_for_oom() {
    // SAFETY: constant, valid buffers; the descriptor is this function's own.
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

/// Makes readiness of a descriptor awaitable.
pub fn awaitable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor and stays the same one until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// `/dev/null`, for a process without input.
pub fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}
