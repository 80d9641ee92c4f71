"""Root in a microVM has a kernel of its own: it may do to it what it likes, and whatever becomes of it, it becomes of that sandbox alone."""

import pathlib
import time

import pytest
from e2b import Sandbox

pytestmark = [pytest.mark.microvm, pytest.mark.every_engine]

# All that a container is refused.
LIBERTIES = {
    "a file system": "mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt && echo done",
    "namespaces": "unshare --user --map-root-user --net --mount --pid --fork echo done",
    "the host's name": "hostname mine && test $(hostname) = mine && echo done",
    "where cores go": "echo /tmp/core-%p > /proc/sys/kernel/core_pattern && cat /proc/sys/kernel/core_pattern | grep -q tmp && echo done",

    "raw packets": "python3 -c 'import socket; socket.socket(17, 3, 0)' && echo done",
}

def test_root_may_do_what_it_likes_and_the_host_sees_nothing_of_it(sandbox):
    before = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    for what, command in LIBERTIES.items():
        assert sandbox.commands.run(command, user="root").stdout == "done\n", what
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert sandbox.commands.run("uname --kernel-release").stdout.strip() != pathlib.Path("/proc/sys/kernel/osrelease").read_text().strip()

@pytest.mark.parametrize("way", [pytest.param("b", id="reset"), pytest.param("o", id="off"), pytest.param("c", id="panic")])
def test_a_kernel_that_ends_is_the_end_of_its_sandbox_alone(server, sandbox, way):
    doomed = Sandbox.create(timeout=600)
    with pytest.raises(Exception):
        doomed.commands.run(f"echo 1 > /proc/sys/kernel/sysrq; echo {way} > /proc/sysrq-trigger; sleep 60", user="root", timeout=60)
    until = time.monotonic() + 30
    while doomed.sandbox_id in {each["sandboxID"] for each in server.sandboxes()}:
        assert time.monotonic() < until, server.tail()
    assert doomed.is_running() is False
    assert doomed.kill() is False
    assert sandbox.commands.run("echo well").stdout == "well\n"
