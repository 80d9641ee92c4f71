"""What a sandbox sees of its own size: memory, processors and use, as programs ask for them."""

import json
import os
import re
import signal
import time

import host_state
import pytest
from conftest import options_of
from e2b import CommandExitException, Sandbox, SandboxException, Template
from server import Server

MIB = 1 << 20

# Opens a file of each kind, reads half of it, and waits for the word to read on.
HOLDER = """
import json, sys
held = [open(path, buffering=1) for path in ("/proc/meminfo", "/proc/stat", "/sys/fs/cgroup/memory.max", "/sys/devices/system/cpu/online")]
first = [file.read(3) for file in held]
print("holding", flush=True)
sys.stdin.readline()
for file in held: file.seek(0)
open("/tmp/second", "w").write(json.dumps([file.read().split()[at] for file, at in zip(held, (1, 1, 0, 0))]))
"""


def value(text, name):
    return int(re.search(rf"^{re.escape(name)}:?\s+(\d+)", text, re.M).group(1))


@pytest.fixture
def cell(cold):
    sandbox = Sandbox.create(**cold)
    yield sandbox
    sandbox.kill()


def run(sandbox, command):
    return sandbox.commands.run(command).stdout


@pytest.mark.container
def test_memory_is_the_limit(cell):
    text = run(cell, "cat /proc/meminfo")
    assert value(text, "MemTotal") == 1024 << 10
    assert 0 < value(text, "MemFree") <= value(text, "MemAvailable") <= 1024 << 10
    assert value(text, "SwapTotal") == 0
    free = run(cell, "free -m").split("\n")[1].split()
    assert int(free[1]) == 1024 and int(free[2]) < 512
    assert int(run(cell, "cat /sys/fs/cgroup/memory.max")) == 1024 * MIB
    assert 0 < int(run(cell, "cat /sys/fs/cgroup/memory.current")) < 1024 * MIB
    assert value(run(cell, "cat /sys/fs/cgroup/memory.stat"), "anon") > 0
    assert int(run(cell, "cat /sys/fs/cgroup/pids.max")) > 0
    assert run(cell, "cat /proc/swaps").count("\n") == 1
    assert run(cell, "awk '$2 != 0 || $4 != 1' /proc/cgroups").count("\n") == 1, "nothing of version 1 but the heading"


@pytest.mark.container
def test_what_is_allocated_is_seen(cell):
    script = """
import time
def available(): return int(next(l for l in open('/proc/meminfo') if l.startswith('MemAvailable')).split()[1])
before = available(); block = bytearray(200 << 20); time.sleep(0.1); print(before - available())
"""
    cell.files.write("/tmp/allocate.py", script)
    assert 180 << 10 < int(run(cell, "python3 /tmp/allocate.py")) < 260 << 10


@pytest.mark.container
def test_programs_size_themselves(cell):
    heap = int(run(cell, "node -p 'require(\"v8\").getHeapStatistics().heap_size_limit'"))
    assert heap < 700 * MIB
    assert int(run(cell, "node -p 'os.totalmem()'")) == 1024 * MIB
    assert int(run(cell, "node -p 'process.constrainedMemory() || os.totalmem()'")) >= 1024 * MIB


@pytest.mark.container
def test_node_says_that_its_heap_is_full(cell):
    with pytest.raises(CommandExitException) as failed:
        cell.commands.run("node -e 'const all = []; for (;;) all.push(new Array(1000).fill({}))'")
    assert "heap out of memory" in failed.value.stderr


@pytest.mark.container
def test_use_is_the_sandboxs_own(cell):
    uptime = float(run(cell, "cut -d' ' -f1 /proc/uptime"))
    assert 0 <= uptime < 60
    stat = run(cell, "cat /proc/stat")
    assert len(re.findall(r"^cpu\d", stat, re.M)) == int(run(cell, "nproc"))
    assert abs(value(stat, "btime") + uptime - time.time()) < 30
    assert float(run(cell, "cut -d' ' -f1 /proc/loadavg")) < 3
    assert run(cell, "cat /proc/diskstats") == ""
    run(cell, "top -bn1 && uptime && lscpu && vmstat && ps aux")
    elapsed = run(cell, "ps -o etimes= -p 1")
    assert 0 <= int(elapsed) < 60, "as long as the sandbox lives"


@pytest.mark.container
def test_nothing_is_writable_or_starts_a_trigger(cell):
    script = """
for path in /proc/meminfo /proc/stat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory.pressure /sys/fs/cgroup/cpu.max /sys/devices/system/cpu/online; do
    if (echo 1 > $path) 2>/dev/null; then echo "wrote $path"; fi
done
if mkdir /sys/fs/cgroup/mine 2>/dev/null; then echo "made a group"; fi
true
"""
    assert cell.commands.run(script, user="root").stdout == ""


@pytest.mark.container
def test_files_held_open_survive_a_snapshot(cell):
    cell.files.write("/tmp/hold.py", HOLDER)
    handle = cell.commands.run("exec python3 /tmp/hold.py", background=True, stdin=True, timeout=0)
    cell.commands.run("until pgrep -f hold.py >/dev/null; do sleep 0.1; done; sleep 0.5")
    cell.pause()
    cell.connect()
    cell.commands.send_stdin(handle.pid, "go\n")
    for _ in range(100):
        if not [one for one in cell.commands.list() if one.pid == handle.pid]:
            break
        time.sleep(0.1)
    text = run(cell, "cat /proc/meminfo /proc/uptime")
    assert value(text, "MemTotal") == 1024 << 10
    second = json.loads(cell.files.read("/tmp/second"))
    assert second == [str(1024 << 10), second[1], str(1024 * MIB), run(cell, "cat /sys/devices/system/cpu/online").strip()]
    assert int(run(cell, "cat /sys/fs/cgroup/memory.max")) == 1024 * MIB


@pytest.mark.container
def test_a_fork_and_a_restarted_server(server):
    own = Server("--keep-frozen-max", "0")
    try:
        sandbox = Sandbox.create(**options_of(own))
        own.crash()
        own.restart()
        text = run(sandbox, "cat /proc/meminfo /proc/uptime /sys/fs/cgroup/memory.max")
        assert value(text, "MemTotal") == 1024 << 10, "the files outlive the server"
        sandbox.pause()
        sandbox.connect()
        text = run(sandbox, "cat /proc/meminfo /proc/uptime /sys/fs/cgroup/memory.max")
        assert value(text, "MemTotal") == 1024 << 10
        [fork] = sandbox.fork(count=1)
        before = int(run(fork, "cat /sys/fs/cgroup/memory.current"))
        sandbox.commands.run("python3 -c 'import time; block = bytearray(300 << 20); time.sleep(60)'", background=True)
        until(lambda: int(run(sandbox, "cat /sys/fs/cgroup/memory.current")) > 300 * MIB)
        assert int(run(fork, "cat /sys/fs/cgroup/memory.current")) < before + 100 * MIB, "each sees its own"
        fork.kill()
        sandbox.kill()
    finally:
        own.stop()


HOG = "blocks = []\nwhile True: blocks.append(bytearray(16 << 20))"


@pytest.mark.container
def test_a_command_killed_for_memory_says_so(cell, cold_server):
    cell.files.write("/tmp/hog.py", HOG)
    for command in ("python3 /tmp/hog.py", "python3 /tmp/hog.py; exit $?"):
        with pytest.raises(CommandExitException) as killed:
            cell.commands.run(command)
        assert "memory limit of 1024 MiB was reached" in killed.value.error, command
    with pytest.raises(CommandExitException) as killed:
        cell.commands.run("kill -9 $$")
    assert killed.value.error == "signal: killed", "not every death is for want of memory"
    assert run(cell, "echo alive") == "alive\n"
    lines = until(lambda: [
        line for line in cold_server.call("GET", f"/v2/sandboxes/{cell.sandbox_id}/logs")[2]["logs"] if "out of memory" in line["message"]
    ])
    assert lines[0]["fields"]["process"] == "python3"
    event = until(lambda: [
        event for event in cold_server.call("GET", f"/events/sandboxes/{cell.sandbox_id}")[2] if "out_of_memory" in event["eventData"]
    ])[0]
    assert event["type"] == "sandbox.lifecycle.updated" and event["eventData"]["out_of_memory"]["process"] == "python3"


@pytest.mark.container
def test_a_resumed_sandbox_counts_kills_anew(cell):
    cell.files.write("/tmp/hog.py", HOG)
    with pytest.raises(CommandExitException):
        cell.commands.run("python3 /tmp/hog.py")
    cell.pause()
    cell.connect()
    with pytest.raises(CommandExitException) as killed:
        cell.commands.run("kill -9 $$")
    assert killed.value.error == "signal: killed"
    with pytest.raises(CommandExitException) as killed:
        cell.commands.run("python3 /tmp/hog.py")
    assert "memory limit" in killed.value.error


# Runs a server on a host that seems to have no FUSE.
WITHOUT_FUSE = ("unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount --bind /dev/null /dev/fuse; exec "$@"', "sh")


@pytest.mark.container
@pytest.mark.parametrize("first, second", [(WITHOUT_FUSE, ()), ((), WITHOUT_FUSE)], ids=["then with FUSE", "then without"])
def test_a_host_without_fuse_runs_sandboxes(first, second):
    own = Server("--keep-frozen-max", "0", prefix=first)
    try:
        sandbox = Sandbox.create(**options_of(own))
        total = run(sandbox, "grep MemTotal /proc/meminfo")
        sandbox.pause()
        own.crash()
        own.prefix = second
        own.restart()
        if second:
            with pytest.raises(SandboxException):
                sandbox.connect()
            assert "modprobe fuse" in own.tail()
            assert sandbox.get_info().state.value == "paused"
        else:
            sandbox.connect()
            assert run(sandbox, "grep MemTotal /proc/meminfo") == total
    finally:
        own.stop()


def until(found):
    for _ in range(100):
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError("nothing was found in ten seconds")


@pytest.mark.container
def test_a_killed_serving_process_is_replaced(cell, cold_server):
    reader = cell.commands.run("while cat /proc/meminfo > /tmp/last; do :; done; echo failed", background=True, timeout=0)
    [first] = host_state.serving(cold_server.data)
    status = host_state.read(f"/proc/{first}/status")
    assert not re.search(r"^[UG]id:.*\b0\b", status, re.M) and re.search(r"^CapEff:\t0+$", status, re.M), "it has rights of root"
    time.sleep(1.5)
    os.kill(first, signal.SIGKILL)
    [second] = until(lambda: [pid for pid in host_state.serving(cold_server.data) if pid != first])
    assert value(run(cell, "cat /proc/meminfo"), "MemTotal") == 1024 << 10
    assert [one for one in cell.commands.list() if one.pid == reader.pid], "no read failed meanwhile"
    reader.kill()


@pytest.mark.container
def test_thousands_of_readers_block_nobody(cell, cold):
    neighbour = Sandbox.create(**cold)
    script = """
import os, threading
held = [os.open("/proc/stat", os.O_RDONLY) for _ in range(900)]
for fd in held: os.read(fd, 1)
def flood():
    while True:
        with open("/sys/fs/cgroup/memory.stat") as file: file.read()
for _ in range(400): threading.Thread(target=flood, daemon=True).start()
print("flooding", flush=True)
threading.Event().wait()
"""
    cell.files.write("/tmp/flood.py", script)
    handle = cell.commands.run("exec python3 /tmp/flood.py", background=True, timeout=0)
    assert "flooding" in next(iter(handle))[0]
    # Until it has used up what it may ask for at once.
    time.sleep(2)
    begun = time.monotonic()
    assert value(run(neighbour, "cat /proc/meminfo"), "MemTotal") == 1024 << 10
    assert time.monotonic() - begun < 10
    cell.pause()
    cell.connect()
    cell.kill()
    neighbour.kill()


# How programs of each kind ask for the number of processors.
COUNTS = [
    "nproc", "getconf _NPROCESSORS_ONLN", "python3 -c 'import os; print(os.cpu_count())'", "python3 -c 'import os; print(len(os.sched_getaffinity(0)))'",
    "python3 -c 'import os; print(os.process_cpu_count())'", "node -p 'os.cpus().length'", "node -p 'os.availableParallelism()'", "grep -c ^processor /proc/cpuinfo", "grep -c '^cpu[0-9]' /proc/stat",
    "lscpu | sed -n 's/^CPU(s): *//p'",
]


@pytest.mark.container
def test_one_processor_is_one_for_every_program(cold_server, cold):
    name = f"one-{os.getpid()}"
    Template.build(Template().from_base_image(), name, cpu_count=1, memory_mb=512, **cold)
    sandbox = Sandbox.create(name, **cold)
    try:
        for restored in (False, True):
            if restored:
                sandbox.pause()
                sandbox.connect()
            counts = {command: run(sandbox, command).strip() for command in COUNTS}
            assert counts == dict.fromkeys(COUNTS, "1")
            assert run(sandbox, "cat /sys/devices/system/cpu/online /sys/devices/system/cpu/possible") == "0\n0\n"
            assert value(run(sandbox, "cat /proc/meminfo"), "MemTotal") == 512 << 10
            quota, period = run(sandbox, "cat /sys/fs/cgroup/cpu.max").split()
            assert int(quota) == int(period)
    finally:
        sandbox.kill()
        cold_server.delete_templates()
