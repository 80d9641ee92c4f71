//! `clone3` with a stack for the child, as `CLONE_VM` needs: the child shares the server's memory, so no page tables are copied.
//! The child runs a function that never returns and may only make raw system calls.
//! With `CLONE_VFORK` the parent's thread sleeps until the child has executed a program or ended.

use std::arch::asm;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::raw::{Errno, syscall};

const STACK_SIZE: usize = 64 * 1024;

/// A stack for a child. Can be used again once the child has executed a program or ended.
#[derive(Debug)]
pub struct ChildStack {
    base: *mut libc::c_void,
}

// SAFETY: the mapping belongs to this value alone, whichever thread holds it.
unsafe impl Send for ChildStack {}

impl ChildStack {
    /// Maps a stack.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping, aliasing nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { base }) }
    }

    /// Returns the address of the lowest byte, for a child that clones a child of its own.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base as u64
    }

    /// Returns the size of the stack, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        STACK_SIZE as u64
    }
}

impl Drop for ChildStack {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size and not handed out.
        unsafe { libc::munmap(self.base, STACK_SIZE) };
    }
}

/// The kernel's `struct clone_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Clone3 {
    /// `CLONE_*` flags.
    pub flags: u64,
    /// Where the kernel stores the pidfd (`CLONE_PIDFD`).
    pub pidfd: u64,
    /// Unused here.
    pub child_tid: u64,
    /// Unused here.
    pub parent_tid: u64,
    /// Signal sent to the parent when the child ends.
    pub exit_signal: u64,
    /// Lowest byte of the child's stack.
    pub stack: u64,
    /// Bytes in the stack.
    pub stack_size: u64,
    /// Unused here.
    pub tls: u64,
    /// Unused here.
    pub set_tid: u64,
    /// Unused here.
    pub set_tid_size: u64,
    /// Descriptor of the cgroup directory that the child is born in (`CLONE_INTO_CGROUP`).
    pub cgroup: u64,
}

impl Clone3 {
    /// Makes the call and returns the child's pid. The child runs `entry(argument)` on the stack named in `self`.
    ///
    /// # Errors
    /// The kernel's error number.
    ///
    /// # Safety
    /// `self.stack` must be memory that nothing else uses until the child has executed a program or ended. With `CLONE_VM`,
    /// `entry` shares this process's memory while other threads run: it may only make raw system calls and touch
    /// memory reserved for it through `argument`, which must live as long. `entry` must not return.
    #[inline(never)]
    pub unsafe fn call(&mut self, entry: extern "C" fn(usize) -> !, argument: usize) -> Result<i32, Errno> {
        let result: isize;
        // SAFETY: the child starts on its own stack with every register as here, so it finds `entry` and
        // `argument`; the parent only sees the call's result.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r13",
                "call r12",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 as isize => result,
                in("rdi") ptr::from_mut(self), in("rsi") size_of::<Self>(),
                in("r12") entry as usize, in("r13") argument,
                lateout("rcx") _, lateout("r11") _,
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "svc 0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x0, x21",
                "blr x20",
                "brk #1",
                "2:",
                in("x8") libc::SYS_clone3 as isize,
                inlateout("x0") ptr::from_mut(self) as isize => result,
                in("x1") size_of::<Self>(),
                in("x20") entry as usize, in("x21") argument,
            );
        }
        if result < 0 { Err(Errno(-result as i32)) } else { Ok(result as i32) }
    }
}

/// A child process.
#[derive(Debug)]
pub struct Spawned {
    /// Process id in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// Starts a child with `flags` and a pidfd, on `stack`, optionally born in `cgroup`, with every signal blocked.
/// It sends `SIGCHLD` when it ends.
///
/// # Errors
/// The kernel's error number.
///
/// # Safety
/// As for [`Clone3::call`].
pub unsafe fn spawn_child(
    flags: u64,
    stack: &ChildStack,
    cgroup: Option<BorrowedFd<'_>>,
    entry: extern "C" fn(usize) -> !,
    argument: usize,
) -> io::Result<Spawned> {
    let mut pidfd: i32 = -1;
    let mut args = Clone3 {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.base(),
        stack_size: stack.size(),
        ..Clone3::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let _quiet = SignalsBlocked::new();
    // SAFETY: the caller keeps the promises of `call`.
    let pid = unsafe { args.call(entry, argument) }?;
    // SAFETY: the kernel has just stored a new descriptor there, and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(ptr::read_volatile(&raw const pidfd)) };
    Ok(Spawned { pid, pidfd })
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Blocks all signals on this thread until it is dropped: a signal handler in the child would modify the server's memory.
struct SignalsBlocked {
    before: u64,
}

impl SignalsBlocked {
    fn new() -> Self {
        Self { before: set_mask(u64::MAX) }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_mask(self.before);
    }
}

fn set_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    let (new, old) = (ptr::from_ref(&mask) as usize, ptr::from_mut(&mut before) as usize);
    // SAFETY: both point to kernel-sized signal sets that live through the call; this thread only.
    let _ = unsafe { syscall(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, new, old, 8, 0, 0]) };
    before
}
