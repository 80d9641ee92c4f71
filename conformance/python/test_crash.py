"""SIGKILL of the server loses nothing: the next server adopts the running sandboxes."""

import os
import time
from datetime import datetime, timezone

import pytest
from e2b import Sandbox

from server import ENGINE, Server
from services import serving, started


@pytest.fixture
def own_server():
    server = Server()
    yield server
    server.stop()


@pytest.mark.every_engine
def test_a_running_command_survives_the_servers_death(own_server):
    options = {"api_key": own_server.key, "api_url": own_server.url, "sandbox_url": own_server.url}
    kept = Sandbox.create(metadata={"who": "kept"}, envs={"A": "b"}, **options)
    kept.files.write("before", "the crash")
    beat = "i=0; while true; do echo $((i+=1)) > new; mv new beat; [ $i = 1 ] && echo beats; sleep 0.02; done"
    handle = started(kept.commands.run(beat, background=True, timeout=0), "beats")
    server_process = serving(kept, 8000)
    expiring = Sandbox.create(timeout=1, **options)
    expires = expiring.get_info().end_at
    own_server.crash()
    time.sleep(max(0, (expires - datetime.now(timezone.utc)).total_seconds()))
    own_server.restart()

    found = Sandbox.connect(kept.sandbox_id, **options)
    assert found.get_info().metadata == {"who": "kept"}
    assert {handle.pid, server_process.pid} <= {process.pid for process in found.commands.list()}
    found.commands.run("seen=$(cat beat); until [ $(cat beat) -gt $seen ]; do sleep 0.01; done", timeout=10)
    assert found.files.read("before") == "the crash"
    assert found.commands.run("echo $A").stdout == "b\n"
    route = {"E2b-Sandbox-Id": kept.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert own_server.call("GET", "/before", headers=route)[2] == b"the crash"
    assert found.commands.kill(handle.pid)
    assert found.kill() is True
    assert expiring.is_running() is False, "what expired while no server ran is gone"


@pytest.mark.container
def test_processes_of_a_killed_sandbox_are_gone(own_server):
    options = {"api_key": own_server.key, "api_url": own_server.url, "sandbox_url": own_server.url}
    sandbox = Sandbox.create(**options)
    mark = f"mark-{os.getpid()}"
    sandbox.commands.run(f"setsid -f bash -c 'exec -a {mark} sleep 1000' >/dev/null 2>&1")

    def alive():
        commands = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                commands.append(open(f"/proc/{pid}/cmdline").read())
            except OSError:
                pass
        return any(mark in command for command in commands)

    assert alive()
    own_server.crash()
    own_server.restart()
    Sandbox.kill(sandbox.sandbox_id, **{k: v for k, v in options.items() if k != "sandbox_url"})
    assert not alive()


def test_crashes_during_creates_lose_no_acknowledged_sandbox_and_leak_nothing(own_server):
    import threading

    acknowledged, stop = set(), threading.Event()

    def create():
        while not stop.is_set():
            try:
                status, _, body = own_server.call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 3600})
            except OSError:
                return
            if status == 201:
                acknowledged.add(body["sandboxID"])

    # Dozens of idle emulated guests use up a processor.
    for round in range(8 if ENGINE == "container" else 2):
        stop.clear()
        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = len(acknowledged)
        while len(acknowledged) < before + 5:
            own_server.call("GET", "/health")
        own_server.crash()
        stop.set()
        for thread in threads:
            thread.join()
        own_server.restart()
        alive = {sandbox["sandboxID"] for sandbox in own_server.sandboxes()}
        assert acknowledged <= alive, "an acknowledged sandbox was lost"
        dirs = {path.stem for path in (own_server.home / "sandboxes").iterdir()}
        assert dirs == alive, "something lives that nobody knows of"
    for sandbox in alive:
        route = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": "49983"}
        assert own_server.call("GET", "/health", headers=route)[0] == 204
