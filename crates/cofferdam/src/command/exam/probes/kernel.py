"""System calls and kernel interfaces that a sandbox has no use for."""

import platform
import socket
import struct
import tempfile

X86 = platform.machine() == "x86_64"
# Numbers of system calls: x86-64, aarch64.
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "clone3": (435, 435), "delete_module": (176, 106),
    "fanotify_init": (300, 262), "finit_module": (313, 273), "fsopen": (430, 430), "init_module": (175, 105),
    "io_uring_setup": (425, 425), "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219),
    "mount": (165, 40), "move_mount": (429, 429), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218), "setns": (308, 268), "settimeofday": (164, 170),
    "swapon": (167, 224), "syslog": (103, 116), "unshare": (272, 97), "userfaultfd": (323, 282), "io_setup": (206, 0),
    "kcmp": (312, 272), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "umount2": (166, 39),
}


def number(name):
    return NUMBERS[name][0 if X86 else 1]


def refused(name, *arguments):
    """Returns a text if the kernel accepted a call, or found fault with its arguments only."""
    try:
        result = syscall(number(name), *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EOPNOTSUPP):
            return None
        return f"{name} was tried by the kernel: {error.strerror}"
    return f"{name} returned {result}"


def forbidden(name, tries, *arguments, proof="ESCAPE"):
    def attack():
        return refused(name, *arguments)

    attack.__name__ = f"syscall_{name}"
    case("kernel", tries, proof)(attack)


NULL = ctypes.c_void_p(0)
BUFFER = ctypes.create_string_buffer(4096)
forbidden("acct", "process accounting into a file", ctypes.c_char_p(b"/tmp/none"), proof="WRITE")
forbidden("add_key", "adds a key to the session keyring", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"exam"), BUFFER, 4, -3)
forbidden("bpf", "creates a BPF map", 0, BUFFER, 72)
forbidden("delete_module", "removes a kernel module", ctypes.c_char_p(b"exam_none"), 0, proof="CRASH")
forbidden("fanotify_init", "watches files of all mounts", 0, 0, proof="READ")
forbidden("finit_module", "loads a kernel module from a file", -1, ctypes.c_char_p(b""), 0)
forbidden("init_module", "loads a kernel module from memory", BUFFER, 4096, ctypes.c_char_p(b""))
forbidden("fsopen", "creates a file system", ctypes.c_char_p(b"tmpfs"), 0)
forbidden("io_uring_setup", "creates an io_uring", 8, BUFFER)
forbidden("kexec_file_load", "loads another kernel from a file", -1, -1, 0, NULL, 0)
forbidden("kexec_load", "loads another kernel", 0, 0, NULL, 0)
forbidden("keyctl", "asks for the session keyring", 0, -3, 1, proof="READ")
forbidden("request_key", "asks for a key of others", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"exam"), NULL, 0, proof="READ")
forbidden("mount", "mounts a tmpfs", ctypes.c_char_p(b"none"), ctypes.c_char_p(b"/mnt"), ctypes.c_char_p(b"tmpfs"), 0, NULL)
forbidden("move_mount", "moves a mount", -1, ctypes.c_char_p(b""), -1, ctypes.c_char_p(b"/mnt"), 4)
forbidden("mount_setattr", "makes mounts writable", -100, ctypes.c_char_p(b"/proc"), 0, BUFFER, 32, proof="WRITE")
forbidden("open_tree", "clones the tree of mounts", -100, ctypes.c_char_p(b"/"), 1)
forbidden("open_by_handle_at", "opens a file of the host by its inode number (the shocker attack)", -100, BUFFER, 0, proof="READ")
forbidden("perf_event_open", "counts events of the kernel", BUFFER, 0, -1, -1, 0, proof="LEAK")
forbidden("pidfd_getfd", "takes a descriptor of another process", -1, 0, 0, proof="READ")
forbidden("pivot_root", "changes the root", ctypes.c_char_p(b"/"), ctypes.c_char_p(b"/"))
forbidden("quotactl", "changes disk quotas", 0x800002, NULL, 0, NULL, proof="WRITE")
forbidden("reboot", "restarts the host", 0, 0, 0, NULL, proof="CRASH")
forbidden("setns", "joins another namespace", -1, 0)
forbidden("settimeofday", "sets the host's clock", BUFFER, NULL, proof="WRITE")
forbidden("swapon", "adds swap space", ctypes.c_char_p(b"/tmp/none"), 0, proof="CRASH")
forbidden("syslog", "reads the kernel's log", 3, BUFFER, 4096, proof="LEAK")
forbidden("userfaultfd", "handles page faults, as exploits do to win races", 0)
forbidden("kcmp", "compares kernel pointers of processes", 1, 1, 0, 0, 0, proof="LEAK")
forbidden("umount2", "unmounts the mask of /proc", ctypes.c_char_p(b"/proc/kcore"), 2, proof="READ")
for flag, what in [(0x10000000, "user"), (0x20000, "mount"), (0x40000000, "network"), (0x20000000, "pid"), (0x2000000, "cgroup"), (0x8000000, "ipc")]:

    def attack(flag=flag):
        return refused("unshare", flag)

    attack.__name__ = f"new_{what}_namespace"
    case("kernel", f"creates a {what} namespace", "ESCAPE")(attack)


@case("kernel", "enters 32-bit system calls, which a filter of numbers would not know", "ESCAPE")
def compat_system_call():
    if not X86:
        raise Skip("x86-64 only")
    import mmap

    # mov eax, 20 (getpid); int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return None if result < 0 else f"a 32-bit getpid returned {result}"


@case("kernel", "uses the x32 variants of system calls", "ESCAPE")
def x32_system_call():
    if not X86:
        raise Skip("x86-64 only")
    return f"returned {syscall(0x40000000 | 39)}"


def socket_opens(*arguments):
    socket.socket(*arguments).close()
    return f"a socket {arguments} was created"


for family_, kind, protocol, what in [
    (17, 3, 3, "packet"), (38, 5, 0, "alg"), (40, 1, 0, "vsock"), (15, 3, 2, "key"), (44, 3, 0, "xdp"), (29, 3, 1, "can"), (16, 3, 12, "netfilter"),
    (16, 3, 9, "audit"), (2, 3, 255, "raw"), (30, 1, 0, "tipc"), (21, 5, 0, "rds"), (2, 1, 132, "sctp"), (2, 1, 262, "mptcp"), (31, 3, 1, "bluetooth"),
]:

    def attack(arguments=(family_, kind, protocol)):
        return socket_opens(*arguments)

    attack.__name__ = f"socket_{what}"
    case("kernel", f"opens a {what} socket", "ESCAPE")(attack)


@case("kernel", "attaches a filter program to a socket, for which the kernel has one memory limit for all", "STALL")
def socket_filter():
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
    return "attached"


@case("kernel", "pushes characters into the input of a terminal", "ESCAPE")
def terminal_injection():
    import fcntl
    import pty

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, 0x5412, b"x")
    return "TIOCSTI was accepted"
