"""Root in a microVM controls the guest's kernel. Whatever it does to that kernel affects its own sandbox only."""

import pathlib
import time

import pytest
from conftest import options_of
from e2b import CommandExitException, Sandbox, SandboxException
from server import Server

pytestmark = [pytest.mark.microvm, pytest.mark.every_engine]

# Everything that a container refuses.
LIBERTIES = {
    "a file system": "mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt && echo done",
    "namespaces": "unshare --user --map-root-user --net --mount --pid --fork echo done",
    "the host's name": "hostname mine && test $(hostname) = mine && echo done",
    "where cores go": "echo /tmp/core-%p > /proc/sys/kernel/core_pattern && cat /proc/sys/kernel/core_pattern | grep -q tmp && echo done",

    "raw packets": "python3 -c 'import socket; socket.socket(17, 3, 0)' && echo done",
}

def test_root_changes_its_kernel_and_not_the_hosts(sandbox):
    before = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    for what, command in LIBERTIES.items():
        assert sandbox.commands.run(command, user="root").stdout == "done\n", what
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert sandbox.commands.run("uname --kernel-release").stdout.strip() != pathlib.Path("/proc/sys/kernel/osrelease").read_text().strip()

@pytest.mark.parametrize("way", [pytest.param("b", id="reset"), pytest.param("o", id="off"), pytest.param("c", id="panic")])
def test_a_guest_kernel_that_stops_ends_only_its_sandbox(server, sandbox, way):
    doomed = Sandbox.create(timeout=600)
    with pytest.raises(Exception):
        doomed.commands.run(f"echo 1 > /proc/sys/kernel/sysrq; echo {way} > /proc/sysrq-trigger; sleep 60", user="root", timeout=60)
    until = time.monotonic() + 30
    while doomed.sandbox_id in {each["sandboxID"] for each in server.sandboxes()}:
        assert time.monotonic() < until, server.tail()
    assert doomed.is_running() is False
    assert doomed.kill() is False
    assert sandbox.commands.run("echo well").stdout == "well\n"


# A read into memory whose page faults are not handled (userfaultfd): it waits in the kernel, where the freezer cannot stop it.
UNSTOPPABLE = """
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
faults = libc.syscall(323, 0)
assert faults >= 0, ctypes.get_errno()
assert libc.ioctl(faults, ctypes.c_ulong(0xC018AA3F), struct.pack("QQQ", 0xAA, 0, 0)) == 0, ctypes.get_errno()
memory = mmap.mmap(-1, 4096)
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert libc.ioctl(faults, ctypes.c_ulong(0xC020AA00), struct.pack("QQQQ", place, 4096, 1, 0)) == 0, ctypes.get_errno()
print("waits", flush=True)
with open("/dev/zero", "rb") as zeros:
    libc.read(zeros.fileno(), ctypes.c_void_p(place), 4096)
print("went on", flush=True)
"""


def test_a_process_that_cannot_be_stopped_prevents_a_memory_snapshot_and_runs_on(sandbox):
    sandbox.files.write("/root/unstoppable.py", UNSTOPPABLE, user="root")
    process = sandbox.commands.run("python3 /root/unstoppable.py", user="root", background=True, timeout=0)
    assert next(iter(process))[0] == "waits\n"
    with pytest.raises(SandboxException, match="could be stopped"):
        sandbox.pause()
    assert sandbox.commands.run("echo well").stdout == "well\n"
    with pytest.raises(SandboxException, match="could be stopped"):
        sandbox.create_snapshot()
    process.kill()
    sandbox.pause()
    assert Sandbox.connect(sandbox.sandbox_id).commands.run("echo well").stdout == "well\n"


# Holds incompressible memory, and prints its digest at first and at each request.
HOLDER = """
import hashlib, os, signal
held = os.urandom(120 << 20)
def tell(*_):
    with open("/tmp/told", "a") as told:
        print(hashlib.sha256(held).hexdigest(), file=told)
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    signal.pause()
"""


def test_an_acknowledged_pause_survives_an_immediate_kill_of_the_server():
    server = Server("--keep-frozen-max", "0", "--slots", "2", "--pool", "0")
    try:
        options = options_of(server)
        sandbox = Sandbox.create(timeout=600, **options)
        sandbox.files.write("/tmp/holder.py", HOLDER)
        handle = sandbox.commands.run("exec python3 /tmp/holder.py", background=True, timeout=0)
        handle.disconnect()
        sandbox.commands.run("until [ -s /tmp/told ]; do sleep 0.1; done", timeout=60)
        for asked in (2, 3):
            # Its changed pages are in a journal, which is being applied to the memory image.
            assert sandbox.pause() is True
            server.crash()
            server.restart()
            sandbox.connect(timeout=600)
            sandbox.commands.run(f"kill -USR1 {handle.pid}; until [ $(wc -l < /tmp/told) -ge {asked} ]; do sleep 0.1; done", timeout=60)
            told = sandbox.files.read("/tmp/told").split()
            assert len(told) == asked and len(set(told)) == 1
        assert not list((server.home / "snapshots").glob("*.pages")), "nobody needs a journal any more"
        assert sandbox.kill() is True
    finally:
        server.stop()


def test_a_command_killed_for_memory_says_so_and_the_control_group_is_visible(sandbox):
    sandbox.files.write("/tmp/hog.py", "blocks = []\nwhile True: blocks.append(bytearray(16 << 20))")
    with pytest.raises(CommandExitException) as killed:
        sandbox.commands.run("python3 /tmp/hog.py", timeout=300)
    assert "out of memory: the sandbox's memory limit" in killed.value.error
    assert int(sandbox.commands.run("cat /sys/fs/cgroup/memory.current").stdout) > 0
    assert "memory" in sandbox.commands.run("cat /sys/fs/cgroup/cgroup.controllers").stdout.split()
