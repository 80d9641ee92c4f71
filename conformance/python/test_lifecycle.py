"""Creating, finding, timing out and ending sandboxes."""

import time
from datetime import timedelta

import pytest
from e2b import NotFoundException, Sandbox, SandboxQuery, TimeoutException


def test_a_time_limit_is_kept_to_the_second(server):
    sandbox = Sandbox.create(timeout=60)
    sandbox.set_timeout(2)
    began = time.monotonic()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 30")
    assert 1.5 < time.monotonic() - began < 3.5
    assert sandbox.is_running() is False
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def test_connecting_extends_and_never_shortens(server, sandbox):
    sandbox.set_timeout(600)
    before = sandbox.get_info().end_at
    other = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert other.get_info().end_at == before
    other = Sandbox.connect(sandbox.sandbox_id, timeout=1200)
    assert other.get_info().end_at > before + timedelta(seconds=500)
    other.files.write("from-another-client", "x")
    assert sandbox.files.exists("from-another-client")


def test_lists_by_metadata_newest_first_in_pages(server):
    made = [Sandbox.create(metadata={"run": "lists", "n": f"{n} &=ü"}) for n in range(3)]
    try:
        pages = Sandbox.list(query=SandboxQuery(metadata={"run": "lists"}), limit=2)
        first = pages.next_items()
        assert [info.sandbox_id for info in first] == [made[2].sandbox_id, made[1].sandbox_id]
        assert pages.has_next
        assert [info.sandbox_id for info in pages.next_items()] == [made[0].sandbox_id]
        assert not pages.has_next
        one = Sandbox.list(query=SandboxQuery(metadata={"n": "1 &=ü"})).next_items()
        assert [(info.sandbox_id, info.metadata["n"]) for info in one] == [(made[1].sandbox_id, "1 &=ü")]
    finally:
        for sandbox in made:
            sandbox.kill()


def test_killing_cuts_a_running_command_and_is_final(server):
    sandbox = Sandbox.create()
    handle = sandbox.commands.run("sleep 1000", background=True)
    assert sandbox.kill() is True
    with pytest.raises(TimeoutException):
        handle.wait()
    assert sandbox.kill() is False
    assert sandbox.is_running() is False
    assert sandbox.sandbox_id not in [info["sandboxID"] for info in server.sandboxes()]


def test_info_and_metrics(server, sandbox):
    info = sandbox.get_info()
    assert (info.name, info.cpu_count, info.memory_mb, info.envd_version) == ("base", 2, 1024, "0.6.13")
    metrics = sandbox.get_metrics()
    assert metrics and metrics[0].mem_total == 1024 << 20, "the sandbox's own memory, not the host's"
    assert 0 < metrics[0].mem_used < metrics[0].mem_total


def test_twenty_at_once(server):
    from concurrent.futures import ThreadPoolExecutor

    def one(number):
        sandbox = Sandbox.create()
        try:
            return sandbox.commands.run(f"echo {number}").stdout
        finally:
            sandbox.kill()

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == [f"{n}\n" for n in range(20)]
