"""Failures below the server: a full disk, a directory that cannot be written, CRIU that fails, a process that cannot be killed. The sandbox
keeps a correct state, the error names the cause, deleting works, and nothing is left.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

import pytest
import host_state
from conftest import options_of
from e2b import Sandbox
from e2b.exceptions import SandboxException
from host_state import states
from server import ENGINE, Server
from services import started

# Memory that takes a dump or a restore long enough to be stopped in the middle.
LARGE = 200
PAUSES = int(os.environ.get("COFFERDAM_MANY_PAUSES", "200" if ENGINE == "container" else "40"))
HOLD = "import os, sys, time; x = os.urandom(int(sys.argv[1]) << 20); open('/tmp/held', 'w').close(); time.sleep(10 ** 6)"


def run(*command):
    subprocess.run(command, check=True)


@contextlib.contextmanager
def a_server(*options, **more):
    server = Server("--keep-frozen-max", "0", "--slots", "2", "--pool", "0", *options, **more)
    try:
        yield server, options_of(server)
    finally:
        server.stop()


def sleeper_in(sandbox, mib=1):
    """Starts a process that holds this much incompressible memory."""
    sandbox.commands.run("rm -f /tmp/held")
    handle = sandbox.commands.run(f'exec python3 -c "{HOLD}" {mib}', background=True, timeout=0)
    handle.disconnect()
    sandbox.commands.run("until [ -e /tmp/held ]; do sleep 0.05; done", timeout=60)
    return handle.pid


def is_well(sandbox, pid):
    assert sandbox.get_info().state.value == "running"
    assert sandbox.commands.run("echo well").stdout == "well\n"
    assert pid in {process.pid for process in sandbox.commands.list()}


def fails(call, *words):
    """Checks that an error names its cause."""
    with pytest.raises(SandboxException) as failed:
        call()
    assert any(word in str(failed.value) for word in words), failed.value
    return failed.value


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if ENGINE == "container":
        run("mount", "-t", "tmpfs", "-o", "size=700M", "none", str(disk))
    else:
        # microVMs also have an image of the template's files there, and sparse files whose holes must stay holes when they are mapped.
        with open(tmp_path / "image", "wb") as file:
            file.truncate(2600 << 20)
        run("mkfs.ext4", "-q", "-m", "0", str(tmp_path / "image"))
        run("mount", "-o", "loop", str(tmp_path / "image"), str(disk))
    yield disk
    run("umount", str(disk))


def fill(disk, leave):
    """Fills the disk but for this many MiB."""
    free = os.statvfs(disk)
    # The file system's own metadata takes some, too.
    size = free.f_bavail * free.f_frsize - (max(leave, 4) << 20)
    with open(disk / "filler", "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
        if leave == 0:
            file.seek(0, os.SEEK_END)
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
    return disk / "filler"


def test_a_full_disk(small_disk):
    with a_server(data=small_disk / "data") as (server, options):
        sandbox = Sandbox.create(**options)
        pid = sleeper_in(sandbox, 150)
        filler = fill(small_disk, 150)
        for call in (sandbox.pause, sandbox.create_snapshot, sandbox.fork):
            fails(call, "free some space")
            is_well(sandbox, pid)
            assert not states(server), "nothing half-made is left"
        assert sandbox.pause(mode="filesystem") is True, "files are there already"
        sandbox.connect()
        filler.unlink()
        # The limit of the writable trees follows the disk's free space within two seconds; microVMs keep their memory there.
        time.sleep(0 if ENGINE == "container" else 3)
        pid = sleeper_in(sandbox, 20)
        assert sandbox.pause() is True
        sandbox.connect()
        is_well(sandbox, pid)
        sandbox.kill()


def test_a_disk_filled_by_others(small_disk):
    """The file system of the writable trees becomes read-only then, as is documented; deleting and a new server help."""
    with a_server(data=small_disk / "data") as (server, options):
        paused, running, late = (Sandbox.create(**options) for _ in range(3))
        for each in (paused, running):
            sleeper_in(each, 5)
        paused.pause()
        filler = fill(small_disk, 0)
        for call in (running.pause, running.create_snapshot, running.fork):
            with pytest.raises(SandboxException):
                call()
        with contextlib.suppress(SandboxException):
            late.commands.run("head -c 50M /dev/zero > /tmp/more")
        listed = {each["sandboxID"]: each["state"] for each in server.sandboxes()}
        assert listed == {paused.sandbox_id: "paused", running.sandbox_id: "running", late.sandbox_id: "running"}
        for each in (running, paused, late):
            assert each.kill() is True, server.tail()
            assert each.kill() is False
        assert server.sandboxes() == [] and not states(server)
        filler.unlink()
        server.crash()
        server.restart()
        again = Sandbox.create(**options)
        pid = sleeper_in(again)
        again.pause()
        again.connect()
        is_well(again, pid)
        again.kill()


def test_snapshots_that_cannot_be_written():
    with a_server() as (server, options):
        sandbox, paused = Sandbox.create(**options), Sandbox.create(**options)
        pid = sleeper_in(sandbox)
        paused.pause()
        dir = str(server.home / "snapshots")
        run("mount", "--bind", dir, dir)
        run("mount", "-o", "remount,ro,bind", dir)
        try:
            for call in (sandbox.pause, sandbox.create_snapshot, sandbox.fork):
                fails(call, "could not be captured")
                is_well(sandbox, pid)
            assert paused.get_info().state.value == "paused"
            assert paused.kill() is True, "what is left of it is removed later"
            assert sandbox.kill() is True
            assert server.sandboxes() == []
        finally:
            run("umount", dir)
        server.crash()
        server.restart()
        assert not states(server), "a start sweeps what could not be removed"
        assert not [name for name in host_state.volumes(server) if not name.startswith(("ready-", "blank-", "t-", "m-t-"))]


@pytest.fixture
def unreliable_criu(tmp_path):
    """A CRIU whose behaviour a file selects: `fail`; `die` during a dump; `stop` during a dump; `linger` during a dump until a third file
    exists; `mute`, which never responds; or to work. CRIU runs in a root directory of its own, where its tree is somewhere else, so
    everything is in the tree and found from there.
    """
    tree = tmp_path / "criu"
    mood = tree / "mood"
    shutil.copytree(os.environ["COFFERDAM_CRIU"], tree, symlinks=True)
    (place,) = tree.glob("usr/lib/*/ld-linux-*.so.*")
    loader = place.rename(place.with_name("ld-linux-real"))
    place.write_text(
        f"""#!/bin/sh
lib=${{0%/*}} tree=${{0%/usr/lib/*}}
set -- --library-path $lib $tree/usr/sbin/criu $4 $5
case "$4 $(cat $tree/mood)" in
  "swrk fail") exit 1 ;;
  "swrk die") $lib/{loader.name} "$@" & sleep 0.03; kill -9 $!; wait; exit 1 ;;
  "swrk stop") ( (for n in 1 2 3; do sleep 0.03; kill -STOP $$; done) & ) ;;
  "swrk linger") ( (for n in 1 2 3; do sleep 0.03; kill -STOP $$; done; until [ -e $tree/mood.go ]; do sleep 0.02; done; kill -CONT $$) & ) ;;
  "swrk mute") exec $lib/{loader.name} --library-path $lib /usr/bin/sleep 1000 ;;
esac
exec $lib/{loader.name} "$@"
"""
    )
    place.chmod(0o755)
    for dir in [tmp_path, *tmp_path.parents][:3]:
        dir.chmod(dir.stat().st_mode | 0o055)
    mood.write_text("well")
    return tree, mood


@pytest.mark.container
def test_criu_fails(unreliable_criu):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree)) as (server, options):
        sandbox = Sandbox.create(**options)
        pid = sleeper_in(sandbox)
        mood.write_text("fail")
        for call in (sandbox.pause, sandbox.create_snapshot, sandbox.fork):
            fails(call, "could not be captured")
            is_well(sandbox, pid)
            assert not states(server)
        snapshot = sandbox.create_snapshot(mode="filesystem")
        mood.write_text("well")
        assert sandbox.pause() is True
        mood.write_text("fail")
        for _ in range(2):
            with pytest.raises(SandboxException):
                sandbox.connect()
            assert sandbox.get_info().state.value == "paused"
            assert sandbox.is_running() is False
        mood.write_text("well")
        sandbox.connect()
        is_well(sandbox, pid)
        sandbox.pause()
        mood.write_text("fail")
        sandbox.connect(on_resume="reboot")
        assert pid not in {process.pid for process in sandbox.commands.list()}, "files alone need no CRIU"
        status, _, body = server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/rollback", {"snapshotID": snapshot.snapshot_id})
        assert status == 200, body
        mood.write_text("well")
        sandbox.pause()
        mood.write_text("fail")
        assert sandbox.kill() is True
        assert len(states(server)) == 1, "the snapshot's"


@pytest.mark.container
def test_criu_is_killed_during_a_dump(unreliable_criu):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree)) as (server, options):
        for _ in range(3):
            sandbox = Sandbox.create(**options)
            sleeper_in(sandbox, 30)
            mood.write_text("die")
            with contextlib.suppress(SandboxException):
                sandbox.pause()
            mood.write_text("well")
            # Its processes may not survive a dump that was interrupted; then it is gone, and calls say so.
            listed = {each["sandboxID"]: each["state"] for each in server.sandboxes()}
            running = listed.get(sandbox.sandbox_id) == "running"
            assert listed.get(sandbox.sandbox_id) in ("running", "paused", None)
            assert sandbox.is_running() is running
            sandbox.kill()
            assert sandbox.kill() is False
            assert not states(server)
            assert not host_state.settled(lambda: host_state.dumps(server.data))


@pytest.mark.container
@pytest.mark.parametrize("way", ["mute", "stop"])
def test_criu_hangs(unreliable_criu, way):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree), "--criu-timeout", "2") as (server, options):
        sandbox, kept = Sandbox.create(**options), Sandbox.create(**options)
        pid, other = sleeper_in(sandbox, LARGE), sleeper_in(kept, LARGE)
        assert kept.pause() is True
        mood.write_text(way)
        fails(sandbox.pause, "could not be captured")
        assert not states(server) or len(states(server)) == 1, "nothing half-made is left"
        assert not host_state.settled(lambda: host_state.dumps(server.data)), "it was ended"
        listed = {each["sandboxID"]: each["state"] for each in server.sandboxes()}
        if way == "mute":
            is_well(sandbox, pid)
        elif sandbox.is_running():
            # CRIU was stopped while it controlled the processes: they may have died, and the sandbox's state says whether they did.
            assert listed[sandbox.sandbox_id] == "running"
        # A restore that hangs leaves the sandbox paused, without processes.
        for _ in range(2):
            with pytest.raises(SandboxException, match="CRIU was silent|could not be|failed to"):
                kept.connect()
            assert kept.get_info().state.value == "paused" and kept.is_running() is False
        mood.write_text("well")
        kept.connect()
        is_well(kept, other)
        for each in (sandbox, kept):
            each.kill()
            assert each.kill() is False
        assert not host_state.settled(lambda: states(server))


def criu_of(server):
    """The CRIU process that the server has started, when it runs."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                is_loader = os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("ld-linux")
                if is_loader and f"PPid:\t{server.process.pid}\n" in host_state.read(f"/proc/{pid}/status"):
                    return int(pid)
        time.sleep(0.01)
    raise AssertionError(server.tail())


def status_of(pid):
    return dict(line.split(":\t", 1) for line in host_state.read(f"/proc/{pid}/status").splitlines())


# Bits of `/proc/<pid>/status`.
DUMP_CAPABILITIES = sum(1 << bit for bit in (1, 2, 3, 6, 7, 19, 21, 40))
RESTORE_CAPABILITIES = DUMP_CAPABILITIES | sum(1 << bit for bit in (0, 12, 18, 23, 24))


@pytest.mark.container
def test_criu_is_confined(unreliable_criu):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree), "--criu-timeout", "3") as (server, options):
        sandbox = Sandbox.create(**options)
        mood.write_text("mute")
        for call, allowed in (("pause", DUMP_CAPABILITIES), ("connect", RESTORE_CAPABILITIES)):
            with asking(getattr(sandbox, call)):
                pid = criu_of(server)
                status, own = status_of(pid), status_of("self")
                for kind in ("CapEff", "CapPrm", "CapBnd"):
                    # Hosts may not have all of them.
                    assert int(status[kind], 16) == allowed & int(own["CapBnd"], 16), (kind, status[kind])
                assert status["NoNewPrivs"].strip() == ("1" if call == "pause" else "0")
                assert (status["Uid"].split()[0] == "0") == (call == "connect")
                seen = set(os.listdir(f"/proc/{pid}/root"))
                assert not seen - {"bin", "cgroup", "criu", "dev", "images", "lib", "lib64", "proc", "run", "sys", "tmp", "usr"}, seen
                assert not os.path.exists(f"/proc/{pid}/root{server.data}")
                assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
                links = host_state.read(f"/proc/{pid}/net/dev").splitlines()[2:]
                assert [link.split(":")[0].strip() for link in links] == ["lo"]
            mood.write_text("well")
            if call == "pause":
                sandbox.pause()
                mood.write_text("mute")
        sandbox.connect()
        assert sandbox.commands.run("echo well").stdout == "well\n"
        sandbox.kill()


@contextlib.contextmanager
def asking(call):
    """Calls in a thread and ignores the result, because the server may be killed meanwhile."""

    def ask():
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join()


def a_dump_hangs(server, stopped):
    """Whether a dump is under way; for one that is to stop in the middle, whether it has stopped."""
    at_work = host_state.dumps(server.data)
    return at_work and (not stopped or any("State:\tT" in host_state.read(f"/proc/{pid}/status") for pid in at_work))


@pytest.mark.container
@pytest.mark.parametrize("way", ["mute", "stop", "linger"])
@pytest.mark.parametrize("call", ["pause", "create_snapshot"])
def test_the_server_is_killed_while_a_dump_hangs(unreliable_criu, way, call):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree), "--criu-timeout", "20") as (server, options):
        sandbox, other = Sandbox.create(**options), Sandbox.create(**options)
        pid = sleeper_in(sandbox, LARGE)
        mood.write_text(way)
        with asking(getattr(sandbox, call)):
            until = time.monotonic() + 20
            while not a_dump_hangs(server, way != "mute"):
                assert time.monotonic() < until, server.tail()
                time.sleep(0.002)
            server.crash()
        mood.write_text("well")
        server.restart()
        # The next server does not wait for the dump, and serves other sandboxes.
        assert host_state.dumps(server.data), "the dump goes on without its server"
        assert other.commands.run("echo well").stdout == "well\n"
        Sandbox.create(**options).kill()
        listed = {each["sandboxID"]: each["state"] for each in server.sandboxes()}
        assert listed == {sandbox.sandbox_id: "paused", other.sandbox_id: "running"}, "it stands still, and says so"
        assert host_state.dumps(server.data), "all that took no time"
        # Calls on this sandbox wait until its state is known.
        mood.with_name(mood.name + ".go").touch()
        try:
            sandbox.connect()
            lives = True
        except SandboxException:
            lives = False
        assert not host_state.dumps(server.data), "it was waited for or ended"
        listed = {each["sandboxID"]: each["state"] for each in server.sandboxes()}
        assert listed.get(sandbox.sandbox_id) == ("running" if lives else None), listed
        # An interrupted dump that controlled the processes may have killed them.
        assert lives or way == "stop", server.tail()
        assert not host_state.settled(lambda: states(server)), "the half of a state is swept"
        if lives:
            if way == "stop":
                # CRIU was taking over the process: it may be dying, and still be listed.
                pid = sleeper_in(sandbox)
            is_well(sandbox, pid)
            try:
                assert sandbox.pause() is True
                sandbox.connect()
            except SandboxException as refused:
                # The dump's code is still in a process: it cannot be dumped again, but runs on.
                assert way == "stop" and "could not be captured" in str(refused)
                is_well(sandbox, pid)
                assert sandbox.pause(mode="filesystem") is True
                sandbox.connect()
            else:
                is_well(sandbox, pid)
        assert sandbox.kill() is lives
        assert sandbox.kill() is False
        assert not host_state.settled(lambda: states(server))


@pytest.mark.container
def test_an_expired_sandbox_that_cannot_be_paused_keeps_running(unreliable_criu):
    tree, mood = unreliable_criu
    with a_server("--criu", str(tree)) as (server, options):
        sandbox = Sandbox.create(lifecycle={"on_timeout": "pause"}, timeout=600, **options)
        pid = sleeper_in(sandbox)
        mood.write_text("fail")
        before = time.time()
        sandbox.set_timeout(1)
        path = f"/v2/sandboxes/{sandbox.sandbox_id}/logs?search=could%20not%20be%20paused"
        until = time.monotonic() + 20
        while not (told := server.call("GET", path)[2]["logs"]):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert told[0]["level"] == "warn" and "could not be captured" in told[0]["fields"]["reason"], told
        # Nothing is lost, its state is running, and the pause is not tried again and again.
        is_well(sandbox, pid)
        end = sandbox.get_info().end_at.timestamp()
        assert end > before + 20, "it has got further time"
        events = [event["type"] for event in server.call("GET", f"/events/sandboxes/{sandbox.sandbox_id}")[2]]
        assert not [event for event in events if event.endswith(("paused", "killed"))], events
        # Before that time is over, the pause is not tried again.
        assert len(server.call("GET", path)[2]["logs"]) == 1
        mood.write_text("well")
        sandbox.set_timeout(1)
        until = time.monotonic() + 20
        while sandbox.get_info().state.value != "paused":
            assert time.monotonic() < until
            time.sleep(0.05)
        sandbox.connect()
        is_well(sandbox, pid)
        sandbox.kill()


@pytest.mark.container
def test_without_criu_a_pause_keeps_files(tmp_path):
    with a_server("--criu", str(tmp_path / "nothing")) as (server, options):
        status, _, engine = server.call("GET", "/cofferdam/v1/engine")
        assert status == 200 and engine["capabilities"]["memory_snapshots"] is False
        sandbox = Sandbox.create(**options)
        pid = sleeper_in(sandbox)
        for call in (sandbox.pause, sandbox.create_snapshot, sandbox.fork):
            fails(call, "cofferdam doctor")
            is_well(sandbox, pid)
        sandbox.files.write("note", "kept")
        snapshot = sandbox.create_snapshot(mode="filesystem")
        assert sandbox.pause(mode="filesystem") is True
        sandbox.connect()
        assert sandbox.files.read("note") == "kept"
        copy = Sandbox.create(snapshot.snapshot_id, **options)
        assert copy.files.read("note") == "kept"
        copy.kill()


QUEUE = "assert ctypes.CDLL(None).mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0"
DEEP = "[(os.mkdir('d'), os.chdir('d')) for _ in range(3000)]"


@pytest.mark.container
@pytest.mark.parametrize("state", [QUEUE, DEEP], ids=["message queue", "deep directory"])
def test_what_cannot_be_captured_does_not_outlive_its_time(state):
    """A message queue, or a directory without a path, is enough: CRIU refuses such processes."""
    with a_server("--pause-retry", "1") as (server, options):
        sandbox = Sandbox.create(lifecycle={"on_timeout": "pause"}, timeout=600, **options)
        program = f"import ctypes, os, time; os.chdir('/tmp'); {state}; open('/tmp/ready', 'w'); time.sleep(1000)"
        handle = sandbox.commands.run(f'python3 -c "{program}"', background=True, timeout=0)
        sandbox.commands.run(f"until [ -e /tmp/ready ]; do kill -0 {handle.pid} || exit 1; sleep 0.05; done", timeout=60)
        handle.disconnect()
        sandbox.files.write("kept", "kept")
        with pytest.raises(SandboxException, match="python3"):
            sandbox.pause()
        sandbox.set_timeout(1)
        until = time.monotonic() + 60
        # Its state is "paused" during each attempt; the event comes with the one that succeeds.
        path = f"/events/sandboxes/{sandbox.sandbox_id}?types=sandbox.lifecycle.paused"
        while not (events := server.call("GET", path)[2]):
            assert time.monotonic() < until, "it goes on running"
            time.sleep(0.1)
        assert len(events) == 1 and events[0]["eventData"]["memory"] is False, events
        assert "python3" in events[0]["eventData"]["fallback_reason"], events
        _, _, logs = server.call("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs")
        assert sum("could not be paused" in line["message"] for line in logs["logs"]) == 4, logs
        assert any("without its memory" in line["message"] for line in logs["logs"]), logs
        again = Sandbox.connect(sandbox.sandbox_id, **options)
        assert again.files.read("kept") == "kept"


@pytest.mark.container
def test_what_cannot_be_captured_is_killed_if_its_owner_chose_that():
    with a_server("--pause-retry", "1") as (server, options):
        body = {"templateID": "base", "autoPauseFallback": "kill"}
        status, _, answer = server.call("POST", "/sandboxes", body)
        assert status == 400 and "needs autoPause" in answer["message"], answer
        status, _, made = server.call("POST", "/sandboxes", body | {"autoPause": True})
        assert status == 201, made
        sandbox = Sandbox.connect(made["sandboxID"], **options)
        program = f"import ctypes, os, time; {QUEUE}; print('held', flush=True); time.sleep(1000)"
        started(sandbox.commands.run(f'exec python3 -c "{program}"', background=True, timeout=0), "held")
        sandbox.set_timeout(1)
        path = f"/events/sandboxes/{sandbox.sandbox_id}?types=sandbox.lifecycle.killed"
        until = time.monotonic() + 60
        while not (events := server.call("GET", path)[2]):
            assert time.monotonic() < until, "it goes on running"
            time.sleep(0.1)
        assert events[0]["eventData"]["kill_reason"] == "pause failed", events


@pytest.fixture
def undying(tmp_path):
    """A process that no signal ends before this test ends it: it waits for a write to a suspended file system."""
    image, disk = tmp_path / "image", tmp_path / "still"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(disk))
    run("fsfreeze", "--freeze", str(disk))
    # Not a child of our shell, which would wait for it: it dies only when the file system is resumed.
    writer = subprocess.Popen(["touch", str(disk / "x")])
    thawed = []

    def let_go():
        if not thawed:
            thawed.append(True)
            run("fsfreeze", "--unfreeze", str(disk))
            writer.wait()

    until = time.monotonic() + 10
    while "State:\tD" not in host_state.read(f"/proc/{writer.pid}/status"):
        assert time.monotonic() < until
        time.sleep(0.01)
    yield writer.pid, let_go
    let_go()
    run("umount", str(disk))


@pytest.mark.container
def test_a_sandbox_that_cannot_be_killed(undying):
    """Its kill fails, goes on in the background, and until it has succeeded the sandbox counts for its team's limit."""
    pid, let_go = undying
    with a_server("--max-sandboxes", "2") as (server, options):
        sandbox, other = Sandbox.create(**options), Sandbox.create(**options)
        record = server.home / "sandboxes" / f"{sandbox.sandbox_id}.json"
        group = json.loads(record.read_text())["cgroup"]
        name = host_state.instance(server.data)
        tops = [top for top in [host_state.GROUPS / name, *host_state.GROUPS.glob(f"*/{name}")] if (top / group).is_dir()]
        for top in tops:
            (top / group / "cgroup.procs").write_text(str(pid))
        status, _, body = server.call("DELETE", f"/sandboxes/{sandbox.sandbox_id}")
        assert status == 500 and "failed to kill all processes" in body["message"], body
        assert sandbox.is_running() is False
        assert [each["sandboxID"] for each in server.sandboxes()] == [other.sandbox_id], "it is in no list any more"
        assert other.commands.run("echo well").stdout == "well\n"
        fails(lambda: Sandbox.create(**options), "maximum number of concurrent sandboxes")
        let_go()
        until = time.monotonic() + 20
        while any((top / group).is_dir() for top in tops):
            assert time.monotonic() < until, "the kill was not finished"
            time.sleep(0.05)
        while True:
            try:
                more = Sandbox.create(**options)
                break
            except SandboxException:
                assert time.monotonic() < until, "its place was not given back"
                time.sleep(0.05)
        more.kill()
        assert sandbox.kill() is False
        assert other.commands.run("echo well").stdout == "well\n"


@pytest.mark.container
def test_a_sandbox_that_cannot_be_killed_before_the_servers_end(undying):
    pid, let_go = undying
    with a_server() as (server, options):
        sandbox, other = Sandbox.create(**options), Sandbox.create(**options)
        record = server.home / "sandboxes" / f"{sandbox.sandbox_id}.json"
        group = json.loads(record.read_text())["cgroup"]
        name = host_state.instance(server.data)
        tops = [top for top in [host_state.GROUPS / name, *host_state.GROUPS.glob(f"*/{name}")] if (top / group).is_dir()]
        for top in tops:
            (top / group / "cgroup.procs").write_text(str(pid))
        status, _, _ = server.call("DELETE", f"/sandboxes/{sandbox.sandbox_id}")
        assert status == 500
        let_go()
        server.crash()
        server.restart()
        assert sandbox.kill() is False
        # Its ids, and so its control group's name, may be in use again; the server's stop checks for leftovers.
        assert other.commands.run("echo well").stdout == "well\n"


def test_the_200th_pause_uses_no_more_disk_than_the_first():
    with a_server() as (server, options):
        sandbox = Sandbox.create(**options)
        pid = sleeper_in(sandbox, 5)

        def cost():
            """The files and bytes of saved snapshots, and the writable trees."""
            # The snapshot before is removed beside what follows.
            deadline = time.monotonic() + 20
            while len(states(server)) > 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(states(server)) == 1
            files = (server.home / "snapshots").rglob("*")
            sizes = [file.stat().st_size for file in files if file.is_file() and file.suffix != ".pages"]
            return len(sizes), sum(sizes), len(host_state.volumes(server))

        costs, taken = [], []
        for number in range(PAUSES):
            sandbox.files.write(f"notes/{number % 10}", str(number) * 1000)
            sandbox.pause()
            costs.append(cost())
            taken.append(host_state.bytes_in_volumes(server))
            sandbox.connect()
        is_well(sandbox, pid)
        early, late = costs[10:20], costs[-10:]
        for what, slack in [(0, 2), (1, 4 << 20), (2, 2)]:
            before, after = max(cost[what] for cost in early), min(cost[what] for cost in late)
            assert after <= before * 1.25 + slack, (what, early, late)
        # Freed space is returned in the background, at most half a minute later.
        most = max(taken[10:20]) + (4 << 20)
        assert not host_state.settled(lambda: host_state.bytes_in_volumes(server) > most, 90), taken
        assert sandbox.files.read(f"notes/{(PAUSES - 1) % 10}").startswith(str(PAUSES - 1))
        sandbox.kill()
