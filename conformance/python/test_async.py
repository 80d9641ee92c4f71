"""The asynchronous SDK: the same promises, many things at once."""

import asyncio
import os
import time

import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    SandboxNotRunningException,
    SandboxQuery,
    TimeoutException,
)


class Collected:
    """Collects the arguments of callbacks, and waits until they fulfil a condition."""

    def __init__(self):
        self.items = []
        self.news = asyncio.Event()

    def __call__(self, item):
        self.items.append(item)
        self.news.set()

    async def until(self, enough, seconds=15):
        async with asyncio.timeout(seconds):
            while not enough(self.items):
                self.news.clear()
                await self.news.wait()
        return self.items


def text(items):
    return "".join(item if isinstance(item, str) else item.decode(errors="replace") for item in items)


async def test_output_is_streamed_while_the_command_runs(async_sandbox):
    out, err = Collected(), Collected()
    handle = await async_sandbox.commands.run(
        "echo one; echo two >&2; read answer; echo $answer; exit 3",
        background=True,
        stdin=True,
        on_stdout=out,
        on_stderr=err,
    )
    await out.until(lambda items: text(items) == "one\n")
    await err.until(lambda items: text(items) == "two\n")
    await handle.send_stdin("three\n")
    with pytest.raises(CommandExitException) as failed:
        await handle.wait()
    assert (failed.value.exit_code, failed.value.stdout, failed.value.stderr) == (3, "one\nthree\n", "two\n")


async def test_environment_dir_and_user_of_a_command(server):
    async with await AsyncSandbox.create(envs={"A": "sandbox", "B": "kept"}) as sandbox:
        result = await sandbox.commands.run("echo $A $B $PWD $(whoami)", envs={"A": "own"}, cwd="/tmp", user="root")
        assert result.stdout == "own kept /tmp root\n"
        with pytest.raises(InvalidArgumentException, match="/missing"):
            await sandbox.commands.run("true", cwd="/missing")


async def test_background_command_is_listed_joined_and_killed(async_sandbox):
    first, second = Collected(), Collected()
    command = "while true; do echo beat; sleep 0.02; done"
    handle = await async_sandbox.commands.run(command, background=True, on_stdout=first)
    assert handle.pid in [process.pid for process in await async_sandbox.commands.list()]
    other = await AsyncSandbox.connect(async_sandbox.sandbox_id)
    joined = await other.commands.connect(handle.pid, on_stdout=second)
    await asyncio.gather(first.until(len), second.until(len))
    await handle.disconnect()
    told = len(second.items)
    await second.until(lambda items: len(items) > told)
    assert await other.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as killed:
        await joined.wait()
    assert (killed.value.exit_code, killed.value.error) == (-1, "signal: killed")
    assert await other.commands.kill(handle.pid) is False
    with pytest.raises(NotFoundException):
        await other.commands.connect(handle.pid + 100_000)


async def test_streamed_input_keeps_its_order(async_sandbox):
    handle = await async_sandbox.commands.run("sha256sum", background=True, stdin=True)
    pieces = [os.urandom(50_000).hex() for _ in range(40)]
    async with async_sandbox.commands.stream_input(handle.pid) as stream:
        for piece in pieces:
            await stream.send(piece)
    await async_sandbox.commands.close_stdin(handle.pid)
    import hashlib

    assert (await handle.wait()).stdout.split()[0] == hashlib.sha256("".join(pieces).encode()).hexdigest()
    lost = async_sandbox.commands.stream_input(999_999)
    with pytest.raises(NotFoundException):
        await lost.send("x")
        await lost.close()


async def test_a_command_is_killed_at_its_timeout(async_sandbox):
    with pytest.raises(TimeoutException):
        await async_sandbox.commands.run("echo $$ > pid; exec sleep 60", timeout=1)
    gone = await async_sandbox.commands.run("! kill -0 $(cat pid) 2>/dev/null && echo gone")
    assert gone.stdout == "gone\n"


async def test_files_in_every_form_and_20_mb(async_sandbox):
    files = async_sandbox.files
    data = os.urandom(20_000_000)

    async def pieces():
        for start in range(0, len(data), 1_000_000):
            yield data[start : start + 1_000_000]

    await asyncio.gather(files.write("whole.bin", data), files.write("streamed.bin", pieces()))
    whole, streamed = await asyncio.gather(files.read("whole.bin", format="bytes"), files.read("streamed.bin", format="stream"))
    assert bytes(whole) == data
    assert b"".join([piece async for piece in streamed]) == data
    await files.write("packed.txt", "pack me " * 1000, gzip=True)
    assert await files.read("packed.txt", gzip=True) == "pack me " * 1000
    await files.write("empty", "")
    assert await files.read("empty") == ""
    assert sorted(entry.name for entry in await files.list("/home/user") if not entry.name.startswith(".")) == [
        "empty", "packed.txt", "streamed.bin", "whole.bin",
    ]
    assert (await files.rename("empty", "void")).path == "/home/user/void"
    await files.remove("void")
    assert not await files.exists("void")
    with pytest.raises(NotFoundException):
        await files.read("void")


async def test_metadata_of_a_file_is_kept(async_sandbox):
    await async_sandbox.files.write("tagged", "x", metadata={"origin": "test"})
    assert (await async_sandbox.files.get_info("tagged")).metadata == {"origin": "test"}
    moved = await async_sandbox.files.rename("tagged", "renamed")
    assert moved.metadata == {"origin": "test"}


async def test_a_recursive_watch_reports_events_as_they_happen(async_sandbox):
    events, ended = Collected(), Collected()
    await async_sandbox.files.make_dir("tree")
    watch = await async_sandbox.files.watch_dir(
        "tree", on_event=events, on_exit=ended, recursive=True, include_entry=True, timeout=0
    )
    await async_sandbox.files.write("tree/new", "x")
    await events.until(lambda items: len(items) >= 3)
    seen = [(event.name, event.type.value) for event in events.items]
    assert seen == [("new", "create"), ("new", "chmod"), ("new", "write")]
    assert events.items[0].entry.path == "/home/user/tree/new"
    await async_sandbox.commands.run("mkdir -p tree/a/b; echo x > tree/a/b/leaf; mv tree/new tree/old; rm tree/old")

    def told(items):
        return {("a/b/leaf", "create"), ("new", "rename"), ("old", "create"), ("old", "remove")} <= {
            (event.name, event.type.value) for event in items
        }

    await events.until(told)
    await watch.stop()
    assert await ended.until(len) == [None]
    with pytest.raises(NotFoundException):
        await async_sandbox.files.watch_dir("no-such-directory", on_event=events)


async def test_a_terminal_takes_input_size_and_a_second_viewer(async_sandbox):
    first, second = Collected(), Collected()
    handle = await async_sandbox.pty.create(PtySize(rows=24, cols=80), on_data=first, envs={"OWN": "mine"}, cwd="/tmp")
    await first.until(lambda items: "$ " in text(items))
    await async_sandbox.pty.send_stdin(handle.pid, b"echo $OWN-$PWD-$(tput cols)\n")
    # The shell may discard what is typed before its prompt.
    await first.until(lambda items: "$ " in text(items).partition("mine-/tmp-80\r\n")[2])
    viewer = await async_sandbox.pty.connect(handle.pid, on_data=second)
    await async_sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    async with async_sandbox.pty.stream_input(handle.pid) as stream:
        await stream.send("echo size-$(tput cols)x$(tput lines); exit 7\n")
    await asyncio.gather(*(data.until(lambda items: "size-132x50" in text(items)) for data in (first, second)))
    for end in (handle, viewer):
        with pytest.raises(CommandExitException) as ended:
            await end.wait()
        assert ended.value.exit_code == 7


async def test_a_sandbox_ends_at_its_timeout(server):
    sandbox = await AsyncSandbox.create(timeout=60)
    began = time.monotonic()
    await sandbox.set_timeout(2)
    with pytest.raises(SandboxNotRunningException):
        await sandbox.commands.run("sleep 30")
    assert 1.5 < time.monotonic() - began < 3.5
    assert await sandbox.is_running() is False
    with pytest.raises(NotFoundException):
        await AsyncSandbox.connect(sandbox.sandbox_id)


async def test_lists_are_filtered_by_metadata_and_paged(server):
    made = await asyncio.gather(*(AsyncSandbox.create(metadata={"set": "async", "n": str(n)}) for n in range(5)))
    try:
        pages = AsyncSandbox.list(query=SandboxQuery(metadata={"set": "async"}), limit=2)
        found = []
        while pages.has_next:
            page = await pages.next_items()
            assert len(page) <= 2
            found += page
        assert {info.sandbox_id for info in found} == {sandbox.sandbox_id for sandbox in made}
        assert len(found) == 5, "a sandbox came on two pages"
        assert [info.started_at for info in found] == sorted((info.started_at for info in found), reverse=True)
    finally:
        assert await asyncio.gather(*(sandbox.kill() for sandbox in made)) == [True] * 5


async def test_a_kill_closes_every_open_stream(server):
    sandbox = await AsyncSandbox.create()
    ended = Collected()
    silent = await sandbox.commands.run("sleep 1000", background=True)
    loud = await sandbox.commands.run("yes", background=True)
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=lambda data: None)
    await sandbox.files.watch_dir("/home/user", on_event=lambda event: None, on_exit=ended)
    assert await sandbox.kill() is True
    for handle in (silent, loud, terminal):
        async with asyncio.timeout(10):
            with pytest.raises(SandboxNotRunningException):
                await handle.wait()
    assert isinstance((await ended.until(len))[0], SandboxNotRunningException)
    assert await sandbox.kill() is False


async def test_many_commands_at_once_in_one_sandbox_do_not_mix(async_sandbox):
    async def one(number):
        result = await async_sandbox.commands.run(f"for i in $(seq 50); do echo {number}; done")
        return result.stdout == f"{number}\n" * 50

    assert all(await asyncio.gather(*(one(number) for number in range(50))))


async def test_many_concurrent_sandboxes_are_isolated(server):
    async def one(number):
        async with await AsyncSandbox.create(envs={"N": str(number)}) as sandbox:
            await sandbox.files.write("n", f"{number}")
            result = await sandbox.commands.run("echo $N $(cat n) $(ls | wc -l)")
            return result.stdout

    assert await asyncio.gather(*(one(n) for n in range(20))) == [f"{n} {n} 1\n" for n in range(20)]
