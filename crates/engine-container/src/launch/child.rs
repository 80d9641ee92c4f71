//! The two short-lived stages between the server and envd. Both share the server's memory, so they may not allocate, lock or call
//! libc: they only make raw system calls (rustix makes them itself on both architectures) and read the [`Plan`].
//! Stage one enters the sandbox's user and network namespaces; stage two is PID 1 and becomes envd.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, statat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, mount_bind, mount_remount};
use rustix::process::{Resource, getrlimit, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
    sched_setaffinity, set_capabilities, unshare_unsafe,
};
use sandbox_setup::{ENVD_NICE, MAX_OPEN_FILES, dev, set_limits};
use sys::{Clone3, attach_and_open, attach_mount, change_root, limit_bounding_set, mount_new, syscall};

use super::plan::{ENVD, LISTEN_FD, Outcome, Plan, SERVER_ADDRESS, Step, exit};

/// Capabilities of root in a sandbox, valid inside its own user namespace only.
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

/// Files that show the sandbox's size, and those of the kernel that they cover.
const RESOURCE_FILES: [(&str, &str); 11] = [
    ("/dev/.resources/proc/cgroups", "/proc/cgroups"),
    ("/dev/.resources/proc/cpuinfo", "/proc/cpuinfo"),
    ("/dev/.resources/proc/diskstats", "/proc/diskstats"),
    ("/dev/.resources/proc/loadavg", "/proc/loadavg"),
    ("/dev/.resources/proc/meminfo", "/proc/meminfo"),
    ("/dev/.resources/proc/stat", "/proc/stat"),
    ("/dev/.resources/proc/swaps", "/proc/swaps"),
    ("/dev/.resources/proc/uptime", "/proc/uptime"),
    ("/dev/.resources/cpu/online", "/sys/devices/system/cpu/online"),
    ("/dev/.resources/cpu/possible", "/sys/devices/system/cpu/possible"),
    ("/dev/.resources/cpu/present", "/sys/devices/system/cpu/present"),
];
/// The first of the masked files are resource files where those can be mounted.
const REPLACED_FILES: usize = 3;
/// Files of `/proc` that are covered with `/dev/null`.
const MASKED_FILES: [&str; 13] = [
    "/proc/cgroups",
    "/proc/diskstats",
    "/proc/swaps",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/partitions",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
];
/// Directories that are covered with an empty directory. A trigger in `/proc/pressure` makes the end of its process wait for RCU, and
/// there is no limit on them. Loop devices name the files behind them, which are paths of the host.
const MASKED_DIRS: [&str; 14] = [
    "/proc/acpi",
    "/proc/pressure",
    "/proc/scsi",
    "/sys/block",
    "/sys/class/block",
    "/sys/dev/block",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/btrfs",
    "/sys/fs/ext4",
    "/sys/fs/xfs",
    "/sys/kernel/security",
];
/// Directories that are visible but read-only, even where the kernel would allow writing.
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// Number of the last signal.
const SIGNALS: usize = 64;

/// Stage one. Uses the server's descriptor table, so the pidfd of stage two is one of the server's descriptors.
pub(super) extern "C" fn enter(plan: usize) -> ! {
    // SAFETY: the parent keeps the plan alive and untouched until this process has ended.
    let plan = unsafe { &*(plan as *const Plan) };
    // SAFETY: the descriptors are the plan's, open for as long as it lives.
    let (user, network) = unsafe {
        (BorrowedFd::borrow_raw(plan.user_namespace), BorrowedFd::borrow_raw(plan.network_namespace))
    };
    plan.must(Step::Privileges, raise_priority());
    // Opened as the host's root: the new namespace's root could not.
    let clocks = plan.must(
        Step::Clocks,
        open(c"/proc/self/timens_offsets", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(number),
    );
    let clocks = clocks.into_raw_fd();
    let outcome = plan.outcome.get();
    // SAFETY: the parent reads this only after this process has ended.
    unsafe { (*outcome).clocks = clocks };
    plan.must(Step::EnterUserNamespace, enter_namespace(user, LinkNameSpaceType::User));
    plan.must(Step::BecomeRoot, become_root());
    // Before PID 1 exists: offsets cannot change once a process is in the namespace.
    plan.must(Step::Clocks, start_clocks(plan, clocks).map_err(number));
    plan.must(Step::EnterNetwork, enter_namespace(network, LinkNameSpaceType::Network));
    let mut pidfd = -1i32;
    let flags = libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC;
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

/// Stage two: PID 1.
extern "C" fn become_init(plan: usize) -> ! {
    // SAFETY: as in `enter`; stage one sleeps until we are done with the plan.
    let plan = unsafe { &*(plan as *const Plan) };
    let _ = setsid();
    // SAFETY: changes this process's namespace only.
    plan.must(Step::CgroupNamespace, unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(number));
    // SAFETY: the plan's descriptor.
    let root = unsafe { BorrowedFd::borrow_raw(plan.root) };
    let root = plan.must(Step::AttachRoot, attach_and_open(root, &plan.root_target).map_err(number));
    plan.must(
        Step::MountProc,
        mount_new("proc", &root, "proc", &[], MountAttrFlags::empty()).map_err(number),
    );
    plan.must(Step::MountDev, attach_dev(plan, &root).map_err(number));
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    plan.must(Step::MountSys, mount_new("sysfs", &root, "sys", &[], read_only).map_err(number));
    plan.must(Step::MountResources, attach_resources(plan, &root).map_err(number));
    plan.must(Step::Hostname, rustix::system::sethostname(plan.hostname.as_bytes()).map_err(number));
    plan.must(Step::PivotRoot, change_root(&root).map_err(number));
    plan.must(Step::Limits, limit_processes(plan).map_err(number));
    if let Some(processors) = &plan.processors {
        plan.must(Step::Processors, sched_setaffinity(None, processors).map_err(number));
    }
    plan.must(Step::Mask, mask(plan.resources.is_some()).map_err(number));
    plan.must(Step::Descriptors, arrange_descriptors(plan.listener));
    plan.must(Step::Capabilities, limit_bounding_set(CAPABILITIES).map_err(number));
    plan.must(Step::Seccomp, install_filter(plan));
    plan.must(Step::Capabilities, drop_capabilities().map_err(number));
    reset_signals();
    let argv = [
        ENVD.as_ptr(),
        c"--listen-fd".as_ptr(),
        c"3".as_ptr(),
        c"--server".as_ptr(),
        SERVER_ADDRESS.as_ptr(),
        ptr::null(),
    ];
    let path = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = [path.as_ptr(), ptr::null()];
    // SAFETY: all three are NULL-terminated and live until the call replaces us.
    let result = unsafe {
        let args = [ENVD.as_ptr() as usize, argv.as_ptr() as usize, environment.as_ptr() as usize, 0, 0, 0];
        syscall(libc::SYS_execve, args)
    };
    match result {
        Ok(_) => exit(),
        Err(errno) => plan.fail(Step::Exec, errno.0),
    }
}

/// The error number, as the parent reads it from the plan.
fn number(errno: Errno) -> i32 {
    errno.raw_os_error()
}

fn enter_namespace(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> Result<(), i32> {
    move_into_link_name_space(namespace, Some(kind)).map_err(number)
}

/// Gives envd a higher priority than user code, while this process is still the host's root. Its score for the OOM killer is not
/// changed: children inherit the right to lower it, and the kernel must be able to kill user code.
fn raise_priority() -> Result<(), i32> {
    rustix::process::setpriority_process(None, ENVD_NICE).map_err(number)
}

fn become_root() -> Result<(), i32> {
    // SAFETY: raw calls that change this process's credentials only.
    unsafe {
        syscall(libc::SYS_setgroups, [0; 6]).map_err(|e| e.0)?;
        syscall(libc::SYS_setresgid, [0; 6]).map_err(|e| e.0)?;
        syscall(libc::SYS_setresuid, [0; 6]).map_err(|e| e.0)?;
    }
    Ok(())
}

/// Makes a time namespace for PID 1 whose clocks begin at 0, so that the sandbox's uptime and the ages of its processes are its own.
fn start_clocks(plan: &Plan, offsets: i32) -> Result<(), Errno> {
    // SAFETY: changes the namespace of this process's children only.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }?;
    // SAFETY: the parent closes it after this process has ended.
    let offsets = unsafe { BorrowedFd::borrow_raw(offsets) };
    rustix::io::write(offsets, plan.clock_offsets.as_bytes())?;
    Ok(())
}

fn attach_dev(plan: &Plan, root: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the plan's descriptor.
    attach_mount(unsafe { BorrowedFd::borrow_raw(plan.dev) }, root, "dev")?;
    dev::mount_inside(root, &plan.shm_size)
}

fn attach_resources(plan: &Plan, root: &OwnedFd) -> Result<(), Errno> {
    let Some([files, cgroup]) = plan.resources else { return Ok(()) };
    // SAFETY: the plan's descriptors.
    let (files, cgroup) = unsafe { (BorrowedFd::borrow_raw(files), BorrowedFd::borrow_raw(cgroup)) };
    attach_mount(files, root, "dev/.resources")?;
    attach_mount(cgroup, root, "sys/fs/cgroup")
}

/// Covers parts of `/proc` and `/sys`. Runs after the root was changed, so these paths lead through file systems that the kernel has
/// just made.
fn mask(has_resources: bool) -> Result<(), Errno> {
    if has_resources {
        for (file, target) in RESOURCE_FILES {
            ignore_missing(mount_bind(file, target))?;
        }
    }
    for file in MASKED_FILES.iter().skip(if has_resources { REPLACED_FILES } else { 0 }).copied() {
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
    mount_bind("/dev/.boot_id", dev::KERNEL_BOOT_ID)
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn limit_processes(plan: &Plan) -> Result<(), Errno> {
    // A sandbox has no use for user namespaces, and most escapes from containers begin with one.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let namespaces = open("/proc/sys/user/max_user_namespaces", flags, Mode::empty())?;
    rustix::io::write(namespaces, b"0")?;
    // Without the host's capabilities the limit of descriptors can only be lowered.
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_OPEN_FILES).min(MAX_OPEN_FILES);
    set_limits(plan.pids, open_files)
}

/// Makes 0 to 2 the sandbox's own `/dev/null` and 3 the listener; all other descriptors are closed when envd is executed.
fn arrange_descriptors(listener: i32) -> Result<(), i32> {
    let null = open(c"/dev/null", OFlags::RDWR, Mode::empty()).map_err(number)?.into_raw_fd() as usize;
    // SAFETY: raw calls on this process's own descriptor table; the overwritten descriptors are not used any more.
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

fn drop_capabilities() -> Result<(), Errno> {
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}

/// Installs the system call filter, with `CAP_SYS_ADMIN` of the sandbox's user namespace, because `no_new_privs` would break sudo.
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

/// Sets every signal to its default action and unblocks all. The parent has blocked all signals, so none arrives before.
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
