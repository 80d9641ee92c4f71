//! [`Plan`]: everything that a starting sandbox needs, prepared by the parent, because the child may not allocate memory.
//! The child reads the plan in place, as it shares the server's memory, and writes back where it failed.
//! Descriptors are numbers: the child has a copy of the server's descriptor table.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString};

use libc::sock_filter;
use rustix::thread::CpuSet;

/// Steps of the child, for the error message of one that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Privileges,
    EnterUserNamespace,
    BecomeRoot,
    Clocks,
    EnterNetwork,
    Clone,
    CgroupNamespace,
    AttachRoot,
    MountProc,
    MountDev,
    MountSys,
    MountResources,
    Mask,
    Hostname,
    PivotRoot,
    Limits,
    Processors,
    Descriptors,
    Capabilities,
    Seccomp,
    Exec,
}

impl Step {
    /// Returns what the step does.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Privileges => "raise envd's priority",
            Self::EnterUserNamespace => "enter the user namespace",
            Self::BecomeRoot => "become the sandbox's root",
            Self::Clocks => "start the sandbox's clocks",
            Self::EnterNetwork => "enter the network namespace",
            Self::Clone => "clone PID 1",
            Self::CgroupNamespace => "make the cgroup namespace",
            Self::AttachRoot => "attach the root file system",
            Self::MountProc => "mount /proc",
            Self::MountDev => "mount /dev",
            Self::MountSys => "mount /sys",
            Self::MountResources => "mount the files that show the sandbox's size",
            Self::Mask => "mask /proc and /sys",
            Self::Hostname => "set the host name",
            Self::PivotRoot => "change the root",
            Self::Limits => "set resource limits",
            Self::Processors => "choose processors",
            Self::Descriptors => "arrange file descriptors",
            Self::Capabilities => "drop capabilities",
            Self::Seccomp => "install the system call filter",
            Self::Exec => "execute envd",
        }
    }
}

/// What the child reports to its parent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Failed step and error number.
    pub(crate) failure: Option<(Step, i32)>,
    /// PID 1's pid on the host.
    pub(crate) pid: i32,
    /// PID 1's pidfd in the server's table.
    pub(crate) pidfd: i32,
    /// The file by which stage one sets clocks, or -1. The server closes it, because stage one may fail at any step.
    pub(crate) clocks: i32,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { failure: None, pid: 0, pidfd: -1, clocks: -1 }
    }
}

/// The plan of a start, in the order of use.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) user_namespace: i32,
    pub(crate) network_namespace: i32,
    /// What makes the clocks of a time namespace begin at 0, as its file takes it.
    pub(crate) clock_offsets: String,
    /// Stack of PID 1 until it executes envd.
    pub(crate) stack_base: u64,
    pub(crate) stack_size: u64,
    /// The assembled root, a detached mount.
    pub(crate) root: i32,
    /// An empty directory of the host that the root is attached to, in the child's mount namespace only.
    pub(crate) root_target: CString,
    /// The sandbox's `/dev`, a detached mount.
    pub(crate) dev: i32,
    /// Its resource files and its control group, detached mounts.
    pub(crate) resources: Option<[i32; 2]>,
    /// The processors that it is bound to.
    pub(crate) processors: Option<CpuSet>,
    /// Size of `/dev/shm`, as mount option value.
    pub(crate) shm_size: CString,
    pub(crate) hostname: String,
    /// Maximum number of processes of the sandbox.
    pub(crate) pids: u64,
    /// envd's listening socket.
    pub(crate) listener: i32,
    pub(crate) filter: Vec<sock_filter>,
    pub(crate) outcome: UnsafeCell<Outcome>,
}

/// Path of envd, which is in the uppermost layer: [`sandbox_setup::ENVD_PATH`], terminated.
pub(crate) const ENVD: &CStr = c"/usr/bin/envd";
/// [`net::CONTROL_ADDRESS`], from which only the server can connect.
pub(crate) const SERVER_ADDRESS: &CStr = c"169.254.0.22";
/// The descriptor at which envd finds its listening socket.
pub(crate) const LISTEN_FD: i32 = 3;

impl Plan {
    /// Returns the value of a step's result. If the step failed, writes the failure into the plan and ends the child.
    pub(super) fn must<T, E: Into<i32>>(&self, step: Step, result: Result<T, E>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => self.fail(step, error.into()),
        }
    }

    /// Writes a failure into the plan and ends the child.
    pub(super) fn fail(&self, step: Step, errno: i32) -> ! {
        // SAFETY: the parent reads this only after the child has ended or executed envd (CLONE_VFORK).
        unsafe { (*self.outcome.get()).failure = Some((step, errno)) };
        exit()
    }
}

/// Ends the calling process at once.
pub(super) fn exit() -> ! {
    loop {
        // SAFETY: ends the calling process; takes no pointers.
        let _ = unsafe { sys::syscall(libc::SYS_exit_group, [1, 0, 0, 0, 0, 0]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envd_is_told_the_address_that_the_firewall_guards() {
        assert_eq!(SERVER_ADDRESS.to_str().unwrap(), net::CONTROL_ADDRESS.to_string());
    }
}
