"""What root in a sandbox is refused: the promises of docs/isolation.md, tried from inside."""

import pytest

PROBE = r"""
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    answer = libc.syscall(number, *[ctypes.c_long(a) for a in args])
    return 0 if answer >= 0 else ctypes.get_errno()
name, = sys.argv[1:]
calls = {
    'unshare user': lambda: call(272, 0x10000000), 'unshare net': lambda: call(272, 0x40000000), 'unshare mount': lambda: call(272, 0x20000),
    'clone user': lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0), 'clone3': lambda: call(435, 0, 0),
    'mount': lambda: call(165, 0, 0, 0, 0, 0), 'fsopen': lambda: call(430, 0, 0), 'setns': lambda: call(308, 0, 0),
    'bpf': lambda: call(321, 0, 0, 0), 'perf': lambda: call(298, 0, 0, 0, 0, 0), 'io_uring': lambda: call(425, 1, 0),
    'keyctl': lambda: call(250, 0, 0, 0, 0, 0), 'userfaultfd': lambda: call(323, 0), 'kexec': lambda: call(246, 0, 0, 0, 0),
    'module': lambda: call(175, 0, 0, 0), 'reboot': lambda: call(169, 0, 0, 0, 0), 'settime': lambda: call(227, 0, 0),
    'handle': lambda: call(304, 0, 0, 0), 'x32 mount': lambda: call(0x40000000 | 165, 0, 0, 0, 0, 0),
}
def open_socket(*args):
    try:
        socket.socket(*args).close()
        return 0
    except OSError as error:
        return error.errno
calls |= {
    'packet socket': lambda: open_socket(17, 3, 0), 'vsock': lambda: open_socket(40, 1, 0), 'alg': lambda: open_socket(38, 5, 0),
    'netfilter': lambda: open_socket(16, 3, 12), 'raw socket': lambda: open_socket(2, 3, 1), 'sctp': lambda: open_socket(2, 1, 132),
}
print(errno.errorcode.get(calls[name](), 'allowed'))
"""

REFUSED = {
    "unshare user": "EPERM", "unshare net": "EPERM", "unshare mount": "EPERM", "clone user": "EPERM", "clone3": "ENOSYS",
    "mount": "EPERM", "fsopen": "EPERM", "setns": "EPERM", "bpf": "EPERM", "perf": "EPERM", "io_uring": "ENOSYS",
    "keyctl": "EPERM", "userfaultfd": "EPERM", "kexec": "EPERM", "module": "EPERM", "reboot": "EPERM", "settime": "EPERM",
    "handle": "EPERM", "x32 mount": "ENOSYS", "packet socket": "EAFNOSUPPORT", "vsock": "EAFNOSUPPORT", "alg": "EAFNOSUPPORT",
    "netfilter": "EPROTONOSUPPORT", "raw socket": "EPERM", "sctp": "EPROTONOSUPPORT",
}


@pytest.fixture(scope="module")
def cell(server):
    from e2b import Sandbox

    sandbox = Sandbox.create()
    sandbox.files.write("/tmp/probe.py", PROBE)
    yield sandbox
    sandbox.kill()


@pytest.mark.parametrize("name", REFUSED)
def test_a_dangerous_call_is_refused(cell, name):
    assert cell.commands.run(f"sudo python3 /tmp/probe.py '{name}'").stdout.strip() == REFUSED[name]


def test_root_has_eleven_capabilities_and_no_way_to_more(cell):
    status = cell.commands.run("grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status", user="root").stdout.split()
    assert bin(int(status[1], 16)).count("1") == 11
    assert status[1] == status[3], "the bounding set is wider than what root has"
    assert status[5] == "2"


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/proc/sysrq-trigger"])
def test_masked_files_are_empty(cell, path):
    assert cell.commands.run(f"sudo cat {path} 2>/dev/null | head -c 100; true").stdout == ""


@pytest.mark.parametrize(
    "path",
    ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/hostname",
     "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/sys/user/max_user_namespaces"],
)
def test_kernel_switches_cannot_be_written(cell, path):
    before = cell.commands.run(f"cat {path} 2>/dev/null; true").stdout
    cell.commands.run(f"sudo sh -c 'echo 1 > {path}' 2>/dev/null; true")
    if not path.endswith("sysrq-trigger"):
        assert cell.commands.run(f"cat {path} 2>/dev/null; true").stdout == before


def test_devices_are_the_harmless_six_and_no_more_can_be_made(cell):
    nodes = cell.commands.run("find /dev -xdev -type c -o -xdev -type b | sort").stdout.split()
    assert nodes == ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"]
    made = cell.commands.run("sudo mknod /tmp/disk b 254 0 2>&1; sudo mknod /tmp/mem c 1 1 2>&1; true").stdout
    assert made.count("not permitted") == 2, made


def test_nothing_of_the_host_is_mounted_or_inherited(server, cell):
    mounts = cell.commands.run("cat /proc/self/mountinfo").stdout
    assert str(server.data) not in mounts and "layers" not in mounts and "/run/cofferdam" not in mounts
    fds = cell.commands.run("sudo ls -l /proc/1/fd").stdout
    for line in fds.splitlines()[1:]:
        target = line.split("-> ")[-1]
        assert target.startswith(("socket:", "anon_inode:", "pipe:", "/dev/null", "/dev/ptmx", "/dev/pts")), line
    assert cell.commands.run("sudo cat /proc/1/environ | tr '\\0' '\\n'").stdout.startswith("PATH=")


def test_the_agent_cannot_be_ended_from_inside(cell):
    cell.commands.run("sudo kill -9 1; sudo kill -STOP 1; sudo kill -TERM 1; true")
    assert cell.commands.run("echo alive").stdout == "alive\n"


def test_core_dumps_never_reach_the_host(cell):
    assert cell.commands.run("ulimit -Hc; ulimit -Sc", user="root").stdout.split() in (["0", "0"], ["1", "1"])


def test_a_set_user_id_root_program_reaches_the_sandboxes_root_only(cell):
    assert cell.commands.run("sudo cat /proc/self/uid_map").stdout.split()[1] != "0"
