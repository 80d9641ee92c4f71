//! The system call filter of every sandbox, as one BPF program.
//! It refuses calls that a container has no use for and calls that had exploitable bugs; everything else is left to capabilities and
//! namespaces. Arguments are checked where only some uses are dangerous.

#![allow(clippy::cast_possible_truncation, reason = "BPF opcodes are 16 bits wide; libc declares them wider")]

use libc::sock_filter;

// Offsets in `struct seccomp_data`; arguments are 64 bits wide and little-endian, their low words first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// Flags that create a namespace. `CLONE_NEWTIME` overlaps with `clone`'s signal number, so only `unshare` accepts it.
const NEW_NAMESPACE: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWCGROUP)
    .cast_unsigned();
const CLONE_NEWTIME: u32 = 0x80;

/// Calls that are refused with `EPERM` whatever their arguments.
const FORBIDDEN: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    // NUMA placement of memory: hints at most, with a history of faults.
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    LSM_SET_SELF_ATTR,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    // Hosts whose `kernel.dmesg_restrict` is 0 show the kernel's log to everyone.
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Calls that are refused with `ENOSYS`, because programs try them and have a fallback.
const ABSENT: &[i64] = &[
    // Its flags are behind a pointer, which a filter cannot follow; C libraries fall back to `clone`.
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The number of its contexts is limited for the whole host.
    libc::SYS_io_setup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_process_madvise,
    MAP_SHADOW_STACK,
    // Calls that Linux has no code for any more.
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_afs_syscall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getpmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_putpmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_security,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_tuxcall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vserver,
];

/// Landlock, absent where the memory of sandboxes is captured: CRIU does not capture the confinement, and a restored program would be
/// without it and not know.
const LANDLOCK: &[i64] =
    &[libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];

/// Newer than libc's tables; the same on both architectures.
const MAP_SHADOW_STACK: i64 = 453;
const LSM_SET_SELF_ATTR: i64 = 460;

/// The number after the newest call that this list considers (`removexattrat`); the same on both architectures.
const FIRST_UNKNOWN: u32 = 467;

/// Returns the program, with or without Landlock.
pub(crate) fn program(landlock: bool) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(EQUAL, AUDIT_ARCH, 1, 0),
        // 32-bit entry points have different call numbers, so they would bypass the filter.
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    // Calls that are newer than this list, and x86-64's x32 variants of the old ones, which have large numbers too.
    program.extend([jump(AT_LEAST, FIRST_UNKNOWN, 0, 1), ret(refuse(libc::ENOSYS))]);
    for number in FORBIDDEN {
        on(&mut program, *number, &[ret(refuse(libc::EPERM))]);
    }
    let lost_by_captures = if landlock { &[] } else { LANDLOCK };
    for number in ABSENT.iter().chain(lost_by_captures) {
        on(&mut program, *number, &[ret(refuse(libc::ENOSYS))]);
    }
    on(&mut program, libc::SYS_clone, &no_bits(NEW_NAMESPACE));
    on(&mut program, libc::SYS_unshare, &no_bits(NEW_NAMESPACE | CLONE_NEWTIME));
    on(&mut program, libc::SYS_ioctl, &ioctl());
    on(&mut program, libc::SYS_fcntl, &fcntl());
    on(&mut program, libc::SYS_prlimit64, &keep_core_limit(1, 2));
    #[cfg(target_arch = "x86_64")]
    on(&mut program, libc::SYS_setrlimit, &keep_core_limit(0, 1));
    on(&mut program, libc::SYS_socket, &socket());
    on(&mut program, libc::SYS_socketpair, &socket());
    on(&mut program, libc::SYS_setsockopt, &socket_option());
    program.push(ret(libc::SECCOMP_RET_ALLOW));
    program
}

/// Adds instructions for one call. `body` must return on every path.
fn on(program: &mut Vec<sock_filter>, number: i64, body: &[sock_filter]) {
    let number = u32::try_from(number).expect("call numbers are small");
    let length = u8::try_from(body.len()).expect("bodies are short");
    program.push(jump(EQUAL, number, 0, length));
    program.extend_from_slice(body);
}

/// Refuses a call whose first argument has any of these bits set.
fn no_bits(bits: u32) -> [sock_filter; 4] {
    [load(argument(0)), jump(ANY_BIT, bits, 0, 1), ret(refuse(libc::EPERM)), ret(libc::SECCOMP_RET_ALLOW)]
}

/// Refuses requests that write into the input of a terminal: a program started with `su` could type commands into its caller's shell.
/// Those of btrfs are unknown, as on other file systems: a subvolume that a program makes in a volume has no limit, and one that it makes
/// read-only cannot be removed. Sharing blocks between files works.
fn ioctl() -> [sock_filter; 11] {
    const TIOCSTI: u32 = 0x5412;
    const TIOCLINUX: u32 = 0x541c;
    const FICLONE: u32 = 0x4004_9409;
    const FICLONERANGE: u32 = 0x4020_940d;
    const FIDEDUPERANGE: u32 = 0xc018_9436;
    const TYPE: u32 = 0xff00;
    const BTRFS: u32 = 0x9400;
    [
        load(argument(1)),
        jump(EQUAL, TIOCSTI, 6, 0),
        jump(EQUAL, TIOCLINUX, 5, 0),
        jump(EQUAL, FICLONE, 6, 0),
        jump(EQUAL, FICLONERANGE, 5, 0),
        jump(EQUAL, FIDEDUPERANGE, 4, 0),
        statement(AND, TYPE),
        jump(EQUAL, BTRFS, 1, 2),
        ret(refuse(libc::EPERM)),
        ret(refuse(libc::ENOTTY)),
        ret(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Refuses dnotify, as kernels without it do. Nothing limits its watches, and closing one takes time for each other one of the
/// directory, so their number can make the end of a process take minutes. Refuses leases, for which whoever opens the file, the server
/// or another sandbox, has to wait.
fn fcntl() -> [sock_filter; 5] {
    [
        load(argument(1)),
        jump(EQUAL, libc::F_NOTIFY.cast_unsigned(), 1, 0),
        jump(EQUAL, libc::F_SETLEASE.cast_unsigned(), 0, 1),
        ret(refuse(libc::EINVAL)),
        ret(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Ignores changes of the limit of core files, because any other value may start the host's crash handler. Returns success for them,
/// because sudo makes one.
fn keep_core_limit(resource: u32, new: u32) -> [sock_filter; 8] {
    [
        load(argument(resource)),
        jump(EQUAL, libc::RLIMIT_CORE, 0, 5),
        // Reading the limit is allowed: then the pointer to the new value is null, in both halves.
        load(argument(new)),
        jump(EQUAL, 0, 0, 2),
        load(argument(new) + 4),
        jump(EQUAL, 0, 1, 0),
        ret(refuse(0)),
        ret(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Allows Unix sockets, IPv4 and IPv6 with the common protocols, and the netlink families that network tools read with.
fn socket() -> Vec<sock_filter> {
    const SOCKET_TYPE: u32 = 0xf;
    let unix = [jump(EQUAL, libc::AF_UNIX.cast_unsigned(), 0, 1), ret(libc::SECCOMP_RET_ALLOW)];
    let netlink = one_of(
        2,
        None,
        &[libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG, libc::NETLINK_KOBJECT_UEVENT],
        libc::EPROTONOSUPPORT,
    );
    let mut internet = one_of(
        1,
        Some(SOCKET_TYPE),
        &[libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW],
        libc::ESOCKTNOSUPPORT,
    );
    // An allowed type is not accepted at once: the check of the protocol follows.
    internet.pop();
    let after_types = internet.len();
    for (at, instruction) in internet.iter_mut().enumerate() {
        if instruction.code == EQUAL {
            instruction.jt = u8::try_from(after_types - at - 1).expect("a short body");
        }
    }
    internet.extend(one_of(
        2,
        None,
        &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6],
        libc::EPROTONOSUPPORT,
    ));
    let mut body = vec![load(argument(0))];
    body.extend(unix);
    let skip_netlink = u8::try_from(netlink.len()).expect("a short body");
    body.push(jump(EQUAL, libc::AF_NETLINK.cast_unsigned(), 0, skip_netlink));
    body.extend(netlink);
    body.push(jump(EQUAL, libc::AF_INET.cast_unsigned(), 2, 0));
    body.push(jump(EQUAL, libc::AF_INET6.cast_unsigned(), 1, 0));
    body.push(ret(refuse(libc::EAFNOSUPPORT)));
    body.extend(internet);
    body
}

/// Refuses programs on sockets. The kernel compiles them into memory that counts for no sandbox and has one limit for the whole host: whoever used it
/// up would keep others from installing their filters, this one among them.
fn socket_option() -> Vec<sock_filter> {
    let programs = [
        libc::SO_ATTACH_FILTER,
        libc::SO_ATTACH_BPF,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        libc::SO_ATTACH_REUSEPORT_EBPF,
    ];
    let mut body = vec![load(argument(1)), jump(EQUAL, libc::SOL_SOCKET.cast_unsigned(), 1, 0)];
    body.push(ret(libc::SECCOMP_RET_ALLOW));
    body.push(load(argument(2)));
    for (at, option) in programs.iter().enumerate() {
        let to_refusal = u8::try_from(programs.len() - at).expect("a short list");
        body.push(jump(EQUAL, option.cast_unsigned(), to_refusal, 0));
    }
    body.push(ret(libc::SECCOMP_RET_ALLOW));
    body.push(ret(refuse(libc::EPERM)));
    body
}

/// Allows the listed values of an argument (after applying a mask) and refuses the others.
fn one_of(index: u32, mask: Option<u32>, values: &[i32], errno: i32) -> Vec<sock_filter> {
    let mut body = vec![load(argument(index))];
    body.extend(mask.map(|mask| statement(AND, mask)));
    for (at, value) in values.iter().enumerate() {
        let to_allow = u8::try_from(values.len() - at).expect("a short list");
        body.push(jump(EQUAL, value.cast_unsigned(), to_allow, 0));
    }
    body.push(ret(refuse(errno)));
    body.push(ret(libc::SECCOMP_RET_ALLOW));
    body
}

fn load(offset: u32) -> sock_filter {
    statement(LOAD, offset)
}

fn ret(action: u32) -> sock_filter {
    statement(RETURN, action)
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the program for a call; returns its decision.
    fn decide(number: i64, args: [u64; 6]) -> u32 {
        decision(&program(false), number, args)
    }

    fn decision(program: &[sock_filter], number: i64, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(u32::try_from(number).unwrap().to_ne_bytes());
        data.extend(AUDIT_ARCH.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let instruction = program[at];
            at += 1;
            let taken = match instruction.code {
                LOAD => {
                    let k = instruction.k as usize;
                    accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
                    continue;
                }
                AND => {
                    accumulator &= instruction.k;
                    continue;
                }
                RETURN => return instruction.k,
                EQUAL => accumulator == instruction.k,
                AT_LEAST => accumulator >= instruction.k,
                ANY_BIT => accumulator & instruction.k != 0,
                code => panic!("unknown instruction {code}"),
            };
            at += usize::from(if taken { instruction.jt } else { instruction.jf });
        }
    }

    fn socket_decision(domain: i32, kind: i32, protocol: i32) -> u32 {
        let args = [domain, kind, protocol].map(|v| u64::from(v.cast_unsigned()));
        decide(libc::SYS_socket, [args[0], args[1], args[2], 0, 0, 0])
    }

    #[test]
    fn common_sockets_are_allowed_and_others_refused() {
        let allow = libc::SECCOMP_RET_ALLOW;
        assert_eq!(socket_decision(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0), allow);
        assert_eq!(socket_decision(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0), allow);
        assert_eq!(socket_decision(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP), allow);
        assert_eq!(socket_decision(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE), allow);
        assert_eq!(socket_decision(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG), allow);
        let proto = refuse(libc::EPROTONOSUPPORT);
        assert_eq!(socket_decision(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER), proto);
        assert_eq!(socket_decision(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT), proto);
        assert_eq!(socket_decision(libc::AF_INET, libc::SOCK_STREAM, 132), proto);
        assert_eq!(socket_decision(libc::AF_INET, libc::SOCK_SEQPACKET, 0), refuse(libc::ESOCKTNOSUPPORT));
        for domain in
            [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK, libc::AF_KEY, libc::AF_XDP, libc::AF_CAN]
        {
            assert_eq!(socket_decision(domain, libc::SOCK_RAW, 0), refuse(libc::EAFNOSUPPORT), "{domain}");
        }
    }

    #[test]
    fn sockets_have_options_but_no_programs() {
        let option = |level: i32, name: i32| {
            let args = [level, name].map(|value| u64::from(value.cast_unsigned()));
            decide(libc::SYS_setsockopt, [3, args[0], args[1], 0, 0, 0])
        };
        for name in [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_BPF, libc::SO_ATTACH_REUSEPORT_CBPF] {
            assert_eq!(option(libc::SOL_SOCKET, name), refuse(libc::EPERM), "{name}");
        }
        for name in [libc::SO_REUSEADDR, libc::SO_RCVBUF, libc::SO_DETACH_FILTER] {
            assert_eq!(option(libc::SOL_SOCKET, name), libc::SECCOMP_RET_ALLOW, "{name}");
        }
        assert_eq!(option(libc::IPPROTO_TCP, libc::SO_ATTACH_FILTER), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn landlock_is_absent_where_captures_would_lose_it() {
        for number in LANDLOCK {
            assert_eq!(decision(&program(false), *number, [0; 6]), refuse(libc::ENOSYS));
            assert_eq!(decision(&program(true), *number, [0; 6]), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn namespaces_cannot_be_created_but_threads_can() {
        let clone = |flags: i32| decide(libc::SYS_clone, [u64::from(flags.cast_unsigned()), 0, 0, 0, 0, 0]);
        assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD | libc::SIGCHLD), libc::SECCOMP_RET_ALLOW);
        assert_eq!(clone(libc::CLONE_NEWUSER), refuse(libc::EPERM));
        assert_eq!(decide(libc::SYS_clone3, [0; 6]), refuse(libc::ENOSYS));
        assert_eq!(decide(libc::SYS_unshare, [0x80, 0, 0, 0, 0, 0]), refuse(libc::EPERM));
        assert_eq!(
            decide(libc::SYS_unshare, [libc::CLONE_FILES as u64, 0, 0, 0, 0, 0]),
            libc::SECCOMP_RET_ALLOW
        );
    }

    #[test]
    fn every_forbidden_call_is_refused_and_others_are_allowed() {
        for number in FORBIDDEN {
            assert_eq!(decide(*number, [0; 6]), refuse(libc::EPERM), "{number}");
        }
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_openat, libc::SYS_ptrace] {
            assert_eq!(decide(number, [0; 6]), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(decide(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), refuse(libc::EPERM));
        assert_eq!(decide(libc::SYS_ioctl, [0, 0x5413, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(decide(libc::SYS_fcntl, [0, 1026, 0, 0, 0, 0]), refuse(libc::EINVAL));
        assert_eq!(decide(libc::SYS_fcntl, [0, 1024, 0, 0, 0, 0]), refuse(libc::EINVAL), "lease");
        assert_eq!(decide(libc::SYS_fcntl, [0, 1025, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
        // Subvolumes, snapshots and their flags are not made; blocks are shared.
        for request in [0x5000_940e, 0x5000_9418, 0x5000_9401, 0x5000_9417, 0x4008_941a, 0x9408] {
            assert_eq!(
                decide(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]),
                refuse(libc::ENOTTY),
                "{request:x}"
            );
        }
        for request in [0x4004_9409, 0x4020_940d, 0xc018_9436, 0x8004_6601] {
            assert_eq!(
                decide(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]),
                libc::SECCOMP_RET_ALLOW,
                "{request:x}"
            );
        }
        assert_eq!(decide(0x4000_0000 | libc::SYS_mount, [0; 6]), refuse(libc::ENOSYS));
        assert_eq!(decide(467, [0; 6]), refuse(libc::ENOSYS), "open_tree_attr");
        assert_eq!(decide(466, [0; 6]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn the_core_limit_can_only_be_read_and_other_limits_changed() {
        let prlimit =
            |resource: u32, new: u64| decide(libc::SYS_prlimit64, [0, resource.into(), new, 1, 0, 0]);
        assert_eq!(prlimit(libc::RLIMIT_CORE, 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(prlimit(libc::RLIMIT_CORE, 0x1000), refuse(0));
        assert_eq!(prlimit(libc::RLIMIT_CORE, 0x7f00_0000_0000), refuse(0));
        assert_eq!(prlimit(libc::RLIMIT_NOFILE, 0x1000), libc::SECCOMP_RET_ALLOW);
    }
}
