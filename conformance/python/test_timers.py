"""Timeouts of sandboxes: how exact they are, what changes them, and what expired while no server ran."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from conftest import options_of
from e2b import Sandbox
from server import Server

# Times are checked to fractions of a second.
pytestmark = pytest.mark.alone


def now():
    return datetime.now(timezone.utc)


def gone_at(sandbox):
    while sandbox.is_running():
        time.sleep(0.01)
    return now()


def test_a_sandbox_ends_within_a_fraction_of_a_second_of_its_timeout(server):
    sandboxes, ends = [], []
    for seconds in (1, 2, 2, 3):
        sandboxes.append(Sandbox.create(timeout=seconds))
        ends.append(sandboxes[-1].get_info().end_at)
    with ThreadPoolExecutor() as pool:
        for end, gone in zip(ends, pool.map(gone_at, sandboxes)):
            assert timedelta(0) <= gone - end < timedelta(seconds=0.7)
    listed = {sandbox["sandboxID"] for sandbox in server.sandboxes()}
    assert not listed & {sandbox.sandbox_id for sandbox in sandboxes}


def test_connect_extends_and_never_shortens(server, sandbox):
    sandbox.set_timeout(600)
    before = sandbox.get_info()
    Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert sandbox.get_info().end_at == before.end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=0)
    assert sandbox.get_info().end_at == before.end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=1200)
    longer = sandbox.get_info()
    assert longer.end_at - before.end_at > timedelta(seconds=590) and longer.started_at == before.started_at
    for duration in (0, 15, 900):
        assert server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/refreshes", {"duration": duration})[0] == 204
    assert sandbox.get_info().end_at == longer.end_at, "a refresh never shortens either"


def test_set_timeout_shortens_down_to_now(server):
    sandbox = Sandbox.create(timeout=600)
    sandbox.set_timeout(60)
    assert timedelta(seconds=50) < sandbox.get_info().end_at - now() <= timedelta(seconds=60)
    sandbox.set_timeout(0)
    assert sandbox.is_running() is False, "its end is acknowledged when it is over"
    assert server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/timeout", {"timeout": 60})[0] == 404


def test_timeouts_are_limited_by_the_team():
    server = Server("--max-hours", "1")
    try:
        options = options_of(server)
        for path, body in [("/v2/sandboxes", {"templateID": "base", "timeout": 3601}), ("/sandboxes", {"templateID": "base", "timeout": 3601})]:
            status, _, answer = server.call("POST", path, body)
            assert status == 400 and "1 hour" in answer["message"], answer
        sandbox = Sandbox.create(timeout=3600, **options)
        info = sandbox.get_info()
        assert info.end_at - info.started_at == timedelta(hours=1)
        status, _, answer = server.call("POST", f"/v2/sandboxes/{sandbox.sandbox_id}/connect", {"timeout": 3601})
        assert status == 400, answer
        sandbox.set_timeout(100_000)
        assert sandbox.get_info().end_at - info.started_at <= timedelta(hours=1)
        for bad in ({"timeout": "soon"}, {}):
            assert server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/timeout", bad)[0] == 400
        assert server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/refreshes", {"duration": 3601})[0] == 400
    finally:
        server.stop()


def test_a_timeout_begins_when_the_sandbox_is_ready(cold):
    sandbox = Sandbox.create(**cold)
    sandbox.commands.run("python3 -c \"import os; open('/dev/shm/x', 'wb').write(os.urandom(100 << 20))\"")
    sandbox.pause()
    asked = now()
    sandbox.connect(timeout=60)
    answered = now()
    info = sandbox.get_info()
    assert info.end_at - info.started_at == timedelta(seconds=60)
    assert info.started_at - asked > (answered - asked) / 2, "the restore comes before the start"
    sandbox.kill()


def test_sandboxes_that_expired_without_a_server_end_at_its_start():
    server = Server("--keep-frozen-max", "0")
    try:
        options = options_of(server)
        ends = Sandbox.create(timeout=600, **options)
        pauses = Sandbox.create(timeout=600, lifecycle={"on_timeout": "pause"}, **options)
        stays = Sandbox.create(timeout=600, **options)
        before = stays.get_info()
        sleeper = pauses.commands.run("sleep 1000", background=True, timeout=0)
        for each in (ends, pauses):
            each.set_timeout(2)
        last = max(each.get_info().end_at for each in (ends, pauses))
        server.crash()
        time.sleep(max(0, (last - now()).total_seconds()))
        server.restart()
        assert ends.is_running() is False
        assert stays.get_info().end_at == before.end_at
        until = time.monotonic() + 10
        while pauses.get_info().state.value != "paused":
            assert time.monotonic() < until
            time.sleep(0.05)
        again = Sandbox.connect(pauses.sandbox_id, **options)
        assert sleeper.pid in {process.pid for process in again.commands.list()}
        events = {event["type"] for event in server.call("GET", f"/events/sandboxes/{ends.sandbox_id}")[2]}
        assert "sandbox.lifecycle.killed" in events
    finally:
        server.stop()


def test_a_pause_at_the_timeout_is_complete_within_two_seconds(cold):
    sandbox = Sandbox.create(timeout=3, lifecycle={"on_timeout": "pause"}, **cold)
    end = sandbox.get_info().end_at
    time.sleep(max(0, (end - now()).total_seconds()) + 2)
    assert sandbox.is_running() is False
    assert sandbox.get_info().state.value == "paused"
    with pytest.raises(Exception, match="doesn't exist|not found"):
        sandbox.set_timeout(60)
    sandbox.kill()
