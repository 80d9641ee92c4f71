"""Pause, resume, snapshots and forks through the asynchronous SDK, with concurrent calls."""

import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException, SandboxQuery, SandboxState
from e2b.exceptions import NotFoundException, TimeoutException

SLEEP = "sleep 1000"


def api(options):
    return {name: value for name, value in options.items() if name != "sandbox_url"}


async def pids(sandbox):
    return {process.pid for process in await sandbox.commands.list()}


async def test_many_are_paused_and_resumed_at_once(cold):
    sandboxes = await asyncio.gather(*(AsyncSandbox.create(metadata={"batch": "async"}, **cold) for _ in range(4)))
    sleepers = [(await each.commands.run(SLEEP, background=True, timeout=0)).pid for each in sandboxes]
    # Two concurrent pauses of each sandbox: one capture, and both calls succeed.
    answers = await asyncio.gather(*(each.pause() for each in sandboxes for _ in range(2)))
    assert len(answers) == 8
    paused = AsyncSandbox.list(SandboxQuery(metadata={"batch": "async"}, state=[SandboxState.PAUSED]), **api(cold))
    assert {info.sandbox_id for info in await paused.next_items()} == {each.sandbox_id for each in sandboxes}
    again = await asyncio.gather(*(AsyncSandbox.connect(each.sandbox_id, **cold) for each in sandboxes for _ in range(2)))
    for sandbox, sleeper in zip(again[::2], sleepers):
        assert sleeper in await pids(sandbox)
    assert all(await asyncio.gather(*(each.kill() for each in sandboxes)))
    assert not any(await asyncio.gather(*(each.kill() for each in sandboxes)))


async def test_a_pause_closes_streams_and_keeps_their_processes(cold):
    sandbox = await AsyncSandbox.create(**cold)
    followed = await sandbox.commands.run("for i in $(seq 100); do echo $i; sleep 0.2; done; echo end", background=True, timeout=0)
    await sandbox.pause()
    with pytest.raises(TimeoutException):
        await followed.wait()
    await sandbox.connect()
    late = await sandbox.commands.connect(followed.pid)
    assert await late.kill() is True
    with pytest.raises(CommandExitException):
        await late.wait()
    assert followed.pid not in await pids(sandbox)
    await sandbox.kill()


async def test_snapshots_and_forks(cold):
    source = await AsyncSandbox.create(envs={"OWN": "mine"}, **cold)
    sleeper = (await source.commands.run(SLEEP, background=True, timeout=0)).pid
    await source.files.write("note", "then")
    snapshot = await source.create_snapshot(name="async-point")
    await source.files.write("note", "now")
    copies = await asyncio.gather(*(AsyncSandbox.create(snapshot.snapshot_id, **cold) for _ in range(3)))
    forks = await source.fork(count=3, timeout=60)
    for each, content in [*((copy, "then") for copy in copies), *((fork, "now") for fork in forks)]:
        assert await each.files.read("note") == content
        assert sleeper in await pids(each)
        assert (await each.commands.run("echo $OWN $E2B_SANDBOX_ID")).stdout.split()[-1] == each.sandbox_id
    listed = await AsyncSandbox.list_snapshots(sandbox_id=source.sandbox_id, **api(cold)).next_items()
    assert [item.snapshot_id for item in listed] == [snapshot.snapshot_id]
    await asyncio.gather(*(each.kill() for each in [source, *copies, *forks]))
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id, **api(cold)) is True
    with pytest.raises(NotFoundException):
        await AsyncSandbox.connect(source.sandbox_id, **cold)


async def test_a_resume_without_memory_is_a_cold_start(cold):
    sandbox = await AsyncSandbox.create(**cold)
    sleeper = (await sandbox.commands.run(SLEEP, background=True, timeout=0)).pid
    await sandbox.files.write("note", "kept")
    await sandbox.pause(mode="filesystem")
    assert await sandbox.is_running() is False
    await sandbox.connect()
    assert sleeper not in await pids(sandbox)
    assert await sandbox.files.read("note") == "kept"
    await sandbox.kill()


async def test_concurrent_calls_leave_one_consistent_state(cold):
    for _ in range(5):
        sandbox = await AsyncSandbox.create(**cold)
        calls = [sandbox.pause(), sandbox.connect(), sandbox.create_snapshot(mode="filesystem"), sandbox.pause(), sandbox.connect()]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, Exception):
                assert "500" not in str(result), result
        info = await sandbox.get_info()
        assert await sandbox.is_running() is (info.state == SandboxState.RUNNING)
        snapshots = await sandbox.list_snapshots().next_items()
        assert await sandbox.kill() is True
        for snapshot in snapshots:
            await AsyncSandbox.delete_snapshot(snapshot.snapshot_id, **api(cold))
