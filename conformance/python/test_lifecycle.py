"""Pause, resume, snapshots and forks through the synchronous SDK: memory, processes, files and identities."""

import time

import pytest
from e2b import Sandbox
from services import serving, started

COUNTER = "n=0; while true; do echo $((n+=1)); sleep 0.1; done"


@pytest.fixture
def options(cold):
    return cold


def next_number(handle):
    for stdout, _, _ in handle:
        if stdout:
            return int(stdout.split()[-1])


@pytest.mark.every_engine
def test_memory_survives_a_pause(cold_server, options):
    sandbox = Sandbox.create(envs={"FOO": "bar"}, **options)
    counter = sandbox.commands.run(COUNTER, background=True)
    web = serving(sandbox, 8000)
    root = sandbox.commands.run("sleep 1000", background=True, user="root")
    sandbox.files.write("note", "kept")
    before = next_number(counter)
    boot = sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout
    assert sandbox.pause() is True
    assert sandbox.pause() is False, "it is paused already"
    assert sandbox.is_running() is False
    assert sandbox.get_info().state.value == "paused"
    listed = {item.sandbox_id: item.state.value for item in Sandbox.list(**{k: v for k, v in options.items() if k != "sandbox_url"}).next_items()}
    assert listed[sandbox.sandbox_id] == "paused"

    again = Sandbox.connect(sandbox.sandbox_id, **options)
    assert {counter.pid, web.pid, root.pid} <= {process.pid for process in again.commands.list()}
    assert next_number(again.commands.connect(counter.pid)) > before
    look = again.commands.run("echo $FOO; cat note; echo; pwd; cat /proc/sys/kernel/random/boot_id").stdout
    assert look == f"bar\nkept\n/home/user\n{boot}"
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert cold_server.call("GET", "/note", headers=route)[2] == b"kept"
    assert sandbox.files.read("note") == "kept", "the handle from before the pause is good"
    assert again.kill() is True


@pytest.mark.every_engine
def test_a_pause_without_memory_keeps_files_only(options):
    sandbox = Sandbox.create(**options)
    sleeper = sandbox.commands.run("sleep 1000", background=True)
    sandbox.files.write("note", "kept")
    boot = sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id, on_resume="reboot", **options)
    assert sleeper.pid not in {process.pid for process in again.commands.list()}
    assert again.files.read("note") == "kept"
    assert again.commands.run("cat /proc/sys/kernel/random/boot_id").stdout != boot
    again.kill()


@pytest.mark.every_engine
def test_a_snapshot_starts_many_sandboxes(options):
    sandbox = Sandbox.create(**options)
    counter = sandbox.commands.run(COUNTER, background=True)
    sandbox.files.write("note", "then")
    snapshot = sandbox.create_snapshot()
    sandbox.files.write("note", "now")
    copies = [Sandbox.create(snapshot.snapshot_id, **options) for _ in range(2)]
    for copy in copies:
        assert copy.files.read("note") == "then"
        assert counter.pid in {process.pid for process in copy.commands.list()}
        inside = copy.commands.run("echo $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX_ID").stdout.split()
        assert inside == [copy.sandbox_id] * 2
        copy.files.write("note", copy.sandbox_id)
    assert sandbox.files.read("note") == "now"
    sandbox.kill()
    late = Sandbox.create(snapshot.snapshot_id, **options)
    assert late.files.read("note") == "then"
    api = {k: v for k, v in options.items() if k != "sandbox_url"}
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **api) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **api) is False
    for copy in [*copies, late]:
        copy.kill()


@pytest.mark.every_engine
def test_forks_are_independent(options):
    sandbox = Sandbox.create(envs={"FOO": "bar"}, **options)
    sandbox.files.write("note", "source")
    forks = sandbox.fork(timeout=60, count=3)
    assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
    for fork in forks:
        assert fork.commands.run("cat note; echo $FOO").stdout == "sourcebar\n"
        fork.files.write("note", fork.sandbox_id)
    assert sandbox.files.read("note") == "source"
    for each in [sandbox, *forks]:
        each.kill()


@pytest.mark.every_engine
def test_an_expired_sandbox_is_paused_and_resumed_by_traffic(cold_server, options):
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    sandbox = Sandbox.create(timeout=600, lifecycle=lifecycle, **options)
    serving(sandbox, 8000)
    sandbox.set_timeout(1)
    deadline = time.monotonic() + 10
    while sandbox.get_info().state.value != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert cold_server.call("GET", "/", headers=route)[0] == 200
    assert sandbox.get_info().state.value == "running"
    sandbox.kill()


@pytest.mark.container
def test_a_sandbox_that_cannot_be_captured_is_reported_and_runs_on(options):
    sandbox = Sandbox.create(**options)
    queue = "ctypes.CDLL(None).mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None)"
    hold = f'exec python3 -c "import ctypes, os, time; assert {queue} >= 0; print(\'held\', flush=True); time.sleep(1000)"'
    started(sandbox.commands.run(hold, background=True), "held")
    with pytest.raises(Exception, match="could not be captured"):
        sandbox.pause()
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.kill()
