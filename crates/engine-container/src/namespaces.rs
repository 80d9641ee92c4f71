//! Creating the user and network namespaces of a slot.

use std::fs;
use std::io;

use engine_host::uids::{RANGE_SIZE, namespace_owner};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use sys::{ChildStack, Namespace, spawn_child, with_effective_user};

/// Creates a user namespace that maps one range of ids, and a network namespace that it owns.
///
/// # Errors
/// The kernel refused.
pub(crate) fn make_namespaces(uid_base: u32) -> io::Result<(Namespace, Namespace)> {
    extern "C" fn wait_to_be_killed(parent: usize) -> ! {
        // A server that dies here must not leave this process behind, and this process must not keep its files and locks open.
        // SAFETY: these calls change this process only: the signal it gets when its parent ends, its own copy of
        // the descriptor table, its life.
        unsafe {
            let signal = libc::SIGKILL as usize;
            let _ = sys::syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, signal, 0, 0, 0, 0]);
            let _ = sys::syscall(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0, 0]);
            if sys::syscall(libc::SYS_getppid, [0; 6]) != Ok(parent) {
                let _ = sys::syscall(libc::SYS_exit_group, [0; 6]);
            }
        }
        loop {
            // SAFETY: sleeps until a signal comes; takes no pointers. A timeless `ppoll` exists on both architectures.
            let _ = unsafe { sys::syscall(libc::SYS_ppoll, [0; 6]) };
        }
    }
    let stack = ChildStack::new()?;
    let flags = (libc::CLONE_VM | libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64;
    // SAFETY: the stack lives until the child is reaped below; the child only sleeps.
    let clone =
        || unsafe { spawn_child(flags, &stack, None, wait_to_be_killed, std::process::id() as usize) };
    // The kernel charges the owner of a user namespace for inotify instances, queues, signals and processes in it, so each sandbox
    // has an owner of its own; otherwise sandboxes would use up each other's limits and root's.
    let child = with_effective_user(namespace_owner(uid_base), clone)??;
    let map = format!("0 {uid_base} {RANGE_SIZE}");
    let made = fs::write(format!("/proc/{}/uid_map", child.pid), &map)
        .and_then(|()| fs::write(format!("/proc/{}/gid_map", child.pid), &map))
        .and_then(|()| {
            Ok((Namespace::of_process(child.pid, "user")?, Namespace::of_process(child.pid, "net")?))
        });
    if let Some(pid) = Pid::from_raw(child.pid) {
        // Neither call can fail for a child that was not waited for yet, and the stack must outlive the child.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    made
}
