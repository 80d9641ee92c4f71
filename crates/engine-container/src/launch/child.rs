//! The two short-lived stages between the server and envd. Both share the server's memory: no allocation, no locks,
//! no libc, only raw system calls (rustix makes them itself on both architectures) and what the [`Plan`] holds.
//! Stage one puts on the sandbox's user and network namespaces; stage two is PID 1 and becomes envd.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, openat, statat};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, mount_bind, mount_remount, move_mount, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, getrlimit, pivot_root, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
    remove_capability_from_bounding_set, set_capabilities, unshare_unsafe,
};
use sys::{Clone3, attach_mount, mount_new, syscall};

use super::plan::{AGENT, LISTEN_FD, Outcome, Plan, Step, exit};

/// What root in a sandbox may do, inside its own user namespace only.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETFCAP);

/// Covered with an empty file.
const MASKED_FILES: [&str; 6] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/kallsyms",
];
/// Covered with an empty directory.
const MASKED_DIRS: [&str; 4] = ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/kernel/security"];
/// Shown, but not writable even where the kernel would allow it.
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

const MAX_OPEN_FILES: u64 = 16_384;
const MAX_QUEUED_SIGNALS: u64 = 4096;
/// Of a sandbox's process limit, what no single user inside can take.
const RESERVED_PIDS: u64 = 32;
const SIGNALS: usize = 64;

/// Stage one. Runs in the server's descriptor table, so the pidfd of stage two lands there.
pub(super) extern "C" fn enter(plan: usize) -> ! {
    // SAFETY: the parent keeps the plan alive and untouched until this process has ended.
    let plan = unsafe { &*(plan as *const Plan) };
    // SAFETY: the descriptors are the plan's, open for as long as it lives.
    let (user, network) = unsafe {
        (BorrowedFd::borrow_raw(plan.user_namespace), BorrowedFd::borrow_raw(plan.network_namespace))
    };
    plan.must(Step::Privileges, favour_agent());
    plan.must(Step::EnterUserNamespace, enter_namespace(user, LinkNameSpaceType::User));
    plan.must(Step::BecomeRoot, become_root());
    plan.must(Step::EnterNetwork, enter_namespace(network, LinkNameSpaceType::Network));
    let outcome = plan.outcome.get();
    let mut pidfd = -1i32;
    let flags = libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | CLONE_NEWTIME;
    let mut args = Clone3 {
        flags: flags as u64,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        stack: plan.stack_base,
        stack_size: plan.stack_size,
        ..Clone3::default()
    };
    // SAFETY: the second stack is the plan's; `become_init` makes raw calls only and never returns.
    let pid = unsafe { args.call(become_init, ptr::from_ref(plan) as usize) };
    match pid {
        Ok(pid) => {
            // SAFETY: stage two has ended or executed envd (CLONE_VFORK), the parent waits for us.
            unsafe { *outcome = Outcome { pid, pidfd: ptr::read_volatile(&raw const pidfd), ..*outcome } };
            exit()
        }
        Err(errno) => plan.fail(Step::Clone, errno.0),
    }
}

const CLONE_NEWTIME: i32 = 0x80;

/// Stage two: PID 1.
extern "C" fn become_init(plan: usize) -> ! {
    // SAFETY: as in `enter`; stage one sleeps until we are done with the plan.
    let plan = unsafe { &*(plan as *const Plan) };
    let _ = setsid();
    // SAFETY: changes this process's namespace only.
    plan.must(Step::CgroupNamespace, unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(number));
    let root = plan.must(Step::AttachRoot, attach_root(plan).map_err(number));
    plan.must(
        Step::MountProc,
        mount_new("proc", &root, "proc", &[], MountAttrFlags::empty()).map_err(number),
    );
    plan.must(Step::MountDev, attach_dev(plan, &root).map_err(number));
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    plan.must(Step::MountSys, mount_new("sysfs", &root, "sys", &[], read_only).map_err(number));
    plan.must(Step::Hostname, rustix::system::sethostname(plan.hostname.as_bytes()).map_err(number));
    plan.must(Step::PivotRoot, change_root(&root).map_err(number));
    plan.must(Step::Limits, set_limits(plan).map_err(number));
    plan.must(Step::Mask, mask().map_err(number));
    plan.must(Step::Descriptors, arrange_descriptors(plan.listener));
    plan.must(Step::Capabilities, drop_bounding_set().map_err(number));
    plan.must(Step::Seccomp, install_filter(plan));
    plan.must(Step::Capabilities, drop_capabilities().map_err(number));
    reset_signals();
    let argv = [AGENT.as_ptr(), c"--listen-fd".as_ptr(), c"3".as_ptr(), ptr::null()];
    let path = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = [path.as_ptr(), ptr::null()];
    // SAFETY: all three are NULL-terminated and live until the call replaces us.
    let answer = unsafe {
        let args = [AGENT.as_ptr() as usize, argv.as_ptr() as usize, environment.as_ptr() as usize, 0, 0, 0];
        syscall(libc::SYS_execve, args)
    };
    match answer {
        Ok(_) => exit(),
        Err(errno) => plan.fail(Step::Exec, errno.0),
    }
}

fn number(errno: Errno) -> i32 {
    errno.raw_os_error()
}

fn enter_namespace(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> Result<(), i32> {
    move_into_link_name_space(namespace, Some(kind)).map_err(number)
}

/// While we are still the host's root: envd runs before user code when both want the processor. It takes this away
/// from every process it starts. Its memory is not favoured in the same way: whoever may be spared by the OOM killer
/// passes that right on to its children, and user code must stay killable.
fn favour_agent() -> Result<(), i32> {
    rustix::process::setpriority_process(None, AGENT_NICE).map_err(number)
}

/// Between user code (0) and the host's most urgent work (-20).
const AGENT_NICE: i32 = -10;

fn become_root() -> Result<(), i32> {
    // SAFETY: raw calls that change this process's credentials only.
    unsafe {
        syscall(libc::SYS_setgroups, [0; 6]).map_err(|e| e.0)?;
        syscall(libc::SYS_setresgid, [0; 6]).map_err(|e| e.0)?;
        syscall(libc::SYS_setresuid, [0; 6]).map_err(|e| e.0)?;
    }
    Ok(())
}

/// Attaches the root over an empty host directory and answers it, opened.
fn attach_root(plan: &Plan) -> Result<OwnedFd, Errno> {
    // SAFETY: the plan's descriptor.
    let root = unsafe { BorrowedFd::borrow_raw(plan.root) };
    let target = plan.root_target.as_c_str();
    move_mount(root, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn attach_dev(plan: &Plan, root: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the plan's descriptor.
    attach_mount(unsafe { BorrowedFd::borrow_raw(plan.dev) }, root, "dev")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dev = openat(root, c"dev", flags, Mode::empty())?;
    let none = MountAttrFlags::empty();
    let options = [("ptmxmode", c"0666"), ("mode", c"0620"), ("gid", c"5"), ("max", c"256")];
    mount_new("devpts", &dev, "pts", &options, none)?;
    mount_new("tmpfs", &dev, "shm", &[("mode", c"1777"), ("size", plan.shm_size.as_c_str())], none)?;
    mount_new("mqueue", &dev, "mqueue", &[], none)
}

fn change_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Runs after the root was changed: these paths lead through file systems the kernel made just now.
fn mask() -> Result<(), Errno> {
    for file in MASKED_FILES {
        ignore_missing(mount_bind("/dev/null", file))?;
    }
    for dir in MASKED_DIRS {
        ignore_missing(mount_bind("/dev/empty", dir))?;
    }
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for path in READ_ONLY {
        if statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            mount_bind(path, path)?;
            mount_remount(path, flags, "")?;
        }
    }
    mount_bind("/dev/.boot_id", "/proc/sys/kernel/random/boot_id")
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        answer => answer,
    }
}

fn set_limits(plan: &Plan) -> Result<(), Errno> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_OPEN_FILES).min(MAX_OPEN_FILES);
    // A sandbox has no use for user namespaces, and most kernel break-outs begin with one.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let namespaces = open("/proc/sys/user/max_user_namespaces", flags, Mode::empty())?;
    rustix::io::write(namespaces, b"0")?;
    // Counted for each user: a fork bomb of one leaves room for the agent and for root to clean up.
    let processes = plan.pids.saturating_sub(RESERVED_PIDS).max(1);
    setrlimit(Resource::Nproc, Rlimit { current: Some(processes), maximum: Some(processes) })?;
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })?;
    let signals = Some(MAX_QUEUED_SIGNALS);
    setrlimit(Resource::Sigpending, Rlimit { current: signals, maximum: signals })?;
    // 1, not 0: the kernel runs the host's crash handler for any other value when core_pattern is a pipe.
    setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) })
}

/// 0–2 become the sandbox's own /dev/null, 3 the listener; everything else closes when envd is executed.
fn arrange_descriptors(listener: i32) -> Result<(), i32> {
    let null = open(c"/dev/null", OFlags::RDWR, Mode::empty()).map_err(number)?.into_raw_fd() as usize;
    // SAFETY: raw calls on this process's own descriptor table; the numbers overwritten are needed by nobody.
    unsafe {
        for standard in 0..3 {
            syscall(libc::SYS_dup3, [null, standard, 0, 0, 0, 0]).map_err(|e| e.0)?;
        }
        if listener == LISTEN_FD {
            syscall(libc::SYS_fcntl, [LISTEN_FD as usize, libc::F_SETFD as usize, 0, 0, 0, 0])
                .map_err(|e| e.0)?;
        } else {
            syscall(libc::SYS_dup3, [listener as usize, LISTEN_FD as usize, 0, 0, 0, 0]).map_err(|e| e.0)?;
        }
        let rest = LISTEN_FD as usize + 1;
        let flags = libc::CLOSE_RANGE_CLOEXEC as usize;
        syscall(libc::SYS_close_range, [rest, u32::MAX as usize, flags, 0, 0, 0]).map_err(|e| e.0)?;
    }
    Ok(())
}

fn drop_bounding_set() -> Result<(), Errno> {
    for bit in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else { continue };
        if CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows fewer capabilities than rustix does.
            Err(Errno::INVAL) => {}
            answer => answer?,
        }
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), Errno> {
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}

/// Installed with `CAP_SYS_ADMIN` of our own user namespace, so `no_new_privs` is not needed: it would break sudo.
fn install_filter(plan: &Plan) -> Result<(), i32> {
    let program = libc::sock_fprog {
        len: u16::try_from(plan.filter.len()).map_err(|_| libc::E2BIG)?,
        filter: plan.filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program lives in the plan; the kernel copies it.
    unsafe {
        let args = [libc::SECCOMP_SET_MODE_FILTER as usize, 0, ptr::from_ref(&program) as usize, 0, 0, 0];
        syscall(libc::SYS_seccomp, args).map_err(|e| e.0)?;
    }
    Ok(())
}

/// Every signal to its default and none blocked. The parent blocked all of them, so none arrives in between.
fn reset_signals() {
    /// The kernel's `struct sigaction` for `SIG_DFL`: all zero on both architectures.
    const DEFAULT: [u64; 4] = [0; 4];
    let none_blocked = 0u64;
    // SAFETY: the pointers are to locals of the sizes the kernel expects; SIGKILL and SIGSTOP refuse harmlessly.
    unsafe {
        for signal in 1..=SIGNALS {
            let _ = syscall(libc::SYS_rt_sigaction, [signal, DEFAULT.as_ptr() as usize, 0, 8, 0, 0]);
        }
        let mask = ptr::from_ref(&none_blocked) as usize;
        let _ = syscall(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, mask, 0, 8, 0, 0]);
    }
}
