//! Starting PID 1 in two vforked stages, which share the server's memory, so the cost does not depend on the server's size.
//! Runs on the slot's thread, which is already in the sandbox's version 1 control groups.
//! After a failure nothing is left: the stages end, and what they made goes with their namespaces.

mod child;
mod plan;
mod seal;

use std::cell::UnsafeCell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use engine::EngineError;
use libc::sock_filter;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use sys::{ChildStack, Namespace, spawn_child};

pub(crate) use seal::forbid_user_namespaces;

use crate::resources::BorrowedMounts;
use plan::{Outcome, Plan};

/// What PID 1 is started with.
#[derive(Debug)]
pub(crate) struct LaunchParts<'a> {
    pub(crate) user_namespace: &'a Namespace,
    pub(crate) network_namespace: &'a Namespace,
    pub(crate) cgroup: BorrowedFd<'a>,
    pub(crate) root: OwnedFd,
    pub(crate) root_target: &'a Path,
    pub(crate) dev: BorrowedFd<'a>,
    pub(crate) resources: Option<BorrowedMounts<'a>>,
    pub(crate) processors: Option<CpuSet>,
    pub(crate) shm_mib: u32,
    pub(crate) hostname: String,
    pub(crate) pids: u32,
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) filter: Vec<sock_filter>,
}

/// A running PID 1.
#[derive(Debug)]
pub(crate) struct InitProcess {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Starts PID 1; returns once it executes envd.
///
/// # Errors
/// The step that failed.
pub(crate) fn launch(parts: LaunchParts<'_>) -> Result<InitProcess, EngineError> {
    let c_string =
        |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let target =
        c_string(parts.root_target.as_os_str().as_bytes()).map_err(EngineError::kernel("name the root"))?;
    let shm_size =
        c_string(format!("{}m", parts.shm_mib).as_bytes()).map_err(EngineError::kernel("size /dev/shm"))?;
    let stacks = ChildStack::new().and_then(|first| Ok((first, ChildStack::new()?)));
    let (first_stack, second_stack) = stacks.map_err(EngineError::kernel("map a stack"))?;
    let plan = Plan {
        user_namespace: parts.user_namespace.as_fd().as_raw_fd(),
        network_namespace: parts.network_namespace.as_fd().as_raw_fd(),
        clock_offsets: clock_offsets(),
        stack_base: second_stack.base(),
        stack_size: second_stack.size(),
        root: parts.root.as_raw_fd(),
        root_target: target,
        dev: parts.dev.as_raw_fd(),
        resources: parts.resources.map(|mounts| [mounts.files.as_raw_fd(), mounts.cgroup.as_raw_fd()]),
        processors: parts.processors,
        shm_size,
        hostname: parts.hostname,
        pids: parts.pids.into(),
        listener: parts.listener.as_raw_fd(),
        filter: parts.filter,
        outcome: UnsafeCell::new(Outcome::default()),
    };
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES) as u64;
    // SAFETY: the stacks and the plan outlive the call, which returns after stage one has ended (CLONE_VFORK);
    // `enter` makes raw calls only and touches nothing but the plan.
    let stage_one = unsafe {
        spawn_child(flags, &first_stack, Some(parts.cgroup), child::enter, ptr::from_ref(&plan) as usize)
    }
    .map_err(EngineError::kernel("clone the first stage"))?;
    reap(stage_one.pid);
    let outcome = plan.outcome.into_inner();
    // SAFETY: stage one opened it in the server's table and has ended; nothing else owns it.
    drop((outcome.clocks >= 0).then(|| unsafe { OwnedFd::from_raw_fd(outcome.clocks) }));
    // SAFETY: the kernel stored a new descriptor there for stage two; nothing else owns it.
    let pidfd = (outcome.pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(outcome.pidfd) });
    if let Some((step, errno)) = outcome.failure {
        if pidfd.is_some() {
            reap(outcome.pid);
        }
        return Err(EngineError::Kernel {
            step: step.describe(),
            source: io::Error::from_raw_os_error(errno),
        });
    }
    let pidfd = pidfd.ok_or_else(|| EngineError::Died("the first stage was killed from outside".into()))?;
    Ok(InitProcess { pid: outcome.pid, pidfd })
}

/// Returns the offsets of clocks that begin at 0 now, to the second.
fn clock_offsets() -> String {
    let seconds = |clock| clock_gettime(clock).tv_sec;
    format!("monotonic -{} 0\nboottime -{} 0\n", seconds(ClockId::Monotonic), seconds(ClockId::Boottime))
}

/// Waits for a child that has ended.
fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}
