//! System calls that a freeze or a capture interrupts: they are made to begin again, so that programs do not notice.
//! A freeze ends some waits with `EINTR` at once, as a stop signal does. Of others only the kernel knows how to continue; CRIU cannot
//! capture that, and its own code in a process destroys it, so they end with `EINTR` in the original and in every copy.
//! Before a capture each such thread is put before its call again, with `ptrace`, while everything is frozen.
//!
//! A wait with a relative timeout begins with its whole timeout again, except where the kernel has told the program how much is left.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::threads::{Thread, threads_of};

/// Maximum time in which all threads that are looked at must stop. They wait in the kernel for nothing but the end of the freeze.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Puts every interrupted thread of the frozen processes in the control group at `group` before its call again. Returns how many
/// there were. Threads that cannot be changed are left: their calls end with `EINTR`.
///
/// # Errors
/// The group cannot be read.
pub(crate) fn rewind_interrupted_calls(group: &Path) -> io::Result<usize> {
    let threads: Vec<Thread> = threads_of(group)?.into_iter().filter(may_be_interrupted).collect();
    if threads.is_empty() {
        return Ok(0);
    }
    // The end of the tracing thread releases those that it still traces.
    thread::scope(|scope| scope.spawn(|| rewind(&threads)).join())
        .map_err(|_| io::Error::other("the thread that restarts calls panicked"))
}

/// Whether a thread is in a call that a freeze may interrupt, by `/proc`, which is much cheaper than `ptrace`.
fn may_be_interrupted(thread: &Thread) -> bool {
    thread.call().is_some_and(|(number, _)| registers::may_be_interrupted(number))
}

/// Whether a signal waits that the thread will handle, so that its call has to end.
#[cfg(target_arch = "x86_64")]
fn has_signal(thread: &Thread) -> bool {
    let status = thread.read("status");
    let mask = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}

fn pid(thread: &Thread) -> Pid {
    Pid::from_raw(thread.id)
}

/// Traces the threads, all at once, and changes those that were interrupted. Returns how many there were.
fn rewind(threads: &[Thread]) -> usize {
    // Of one that another process traces, the tracer decides.
    let seize = |thread: &&Thread| ptrace::seize(pid(thread), Options::empty()).is_ok();
    let mut traced: Vec<&Thread> = threads.iter().filter(seize).collect();
    traced.retain(|thread| ptrace::interrupt(pid(thread)).is_ok());
    let deadline = Instant::now() + STOP_TIMEOUT;
    let rewound = traced.iter().filter(|thread| {
        let rewound = stops(pid(thread), deadline) && registers::rewind(thread);
        let _ = ptrace::detach(pid(thread), None);
        rewound
    });
    rewound.count()
}

/// Waits until a traced thread has stopped. Returns false when it has ended, or has not stopped at the deadline.
fn stops(thread: Pid, deadline: Instant) -> bool {
    const PAUSE: Duration = Duration::from_micros(50);
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            // The kernel has no wait for a stop with a time limit.
            Ok(WaitStatus::StillAlive) if Instant::now() < deadline => thread::park_timeout(PAUSE),
            Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)) => return true,
            Err(Errno::EINTR) => {}
            _ => return false,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Thread, has_signal, pid, ptrace};

    /// Bytes of the instruction `syscall`.
    const CALL_LENGTH: u64 = 2;
    /// The kernel's internal result of calls that it restarts in a way of their own, mostly with the rest of their timeouts.
    const ERESTART_RESTARTBLOCK: i64 = 516;

    /// Calls that the kernel restarts in a way of their own. Not among them is `restart_syscall` itself, which it puts in their place
    /// when it does so: which call that was is not known any more.
    const RESTARTED: [i64; 4] =
        [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_poll, libc::SYS_futex];
    /// Calls that end with `EINTR` when a process is frozen, without having done anything: waits for events, and reads, writes and
    /// connections of sockets with a timeout.
    const ENDED: [i64; 21] = [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendfile,
        libc::SYS_splice,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
    ];

    pub(super) fn may_be_interrupted(number: i64) -> bool {
        RESTARTED.contains(&number) || ENDED.contains(&number)
    }

    /// Puts a stopped thread before its call again if that was interrupted by nothing but the freeze. Returns whether it was.
    pub(super) fn rewind(thread: &Thread) -> bool {
        let Ok(mut own) = ptrace::getregs(pid(thread)) else { return false };
        let number = own.orig_rax.cast_signed();
        let interrupted = match -own.rax.cast_signed() {
            ERESTART_RESTARTBLOCK => RESTARTED.contains(&number),
            result => result == i64::from(libc::EINTR) && ENDED.contains(&number),
        };
        if !interrupted || has_signal(thread) {
            return false;
        }
        // The kernel has written the rest of the time to the last argument, if there is one: the new call sleeps for that.
        match number {
            libc::SYS_nanosleep if own.rsi != 0 => own.rdi = own.rsi,
            libc::SYS_clock_nanosleep if own.r10 != 0 => own.rdx = own.r10,
            _ => {}
        }
        own.rip -= CALL_LENGTH;
        own.rax = number.cast_unsigned();
        // It is in no call any more, so the kernel does not restart one itself.
        own.orig_rax = u64::MAX;
        ptrace::setregs(pid(thread), own).is_ok()
    }
}

/// Not implemented: calls end with `EINTR`.
#[cfg(target_arch = "aarch64")]
mod registers {
    use super::Thread;

    pub(super) fn may_be_interrupted(_number: i64) -> bool {
        false
    }

    pub(super) fn rewind(_thread: &Thread) -> bool {
        false
    }
}
