"""Load in one sandbox: hundreds of concurrent processes through the SDK, and more file events than the kernel's queue holds."""

import asyncio
import json
import os
import signal
import time

import pytest
from e2b import AsyncSandbox, Sandbox
from e2b.exceptions import SandboxException

pytestmark = pytest.mark.alone

PROCESSES = 500
# More than the kernel queues for one watcher (fs.inotify.max_queued_events).
FILES = 2 * int(open("/proc/sys/fs/inotify/max_queued_events").read()) + 1000


async def test_500_processes_are_started_concurrently(server):
    sandbox = await AsyncSandbox.create()
    try:
        # The SDK opens at most 200 connections to one address; further calls wait.
        wait = {"timeout": 0, "request_timeout": 120}
        ready = await asyncio.gather(
            *(sandbox.commands.run(f"echo {number} > /tmp/at-{number}; exec sleep 1000", background=True, **wait) for number in range(PROCESSES // 5)),
        )
        pids = {handle.pid for handle in ready}
        # A disconnected command runs on, and its connection is free for the next.
        for handle in ready:
            await handle.disconnect()
        for _ in range(4):
            more = await asyncio.gather(*(sandbox.commands.run("exec sleep 1000", background=True, **wait) for _ in range(PROCESSES // 5)))
            pids |= {handle.pid for handle in more}
            for handle in more:
                await handle.disconnect()
        assert len(pids) == PROCESSES
        assert pids <= {process.pid for process in await sandbox.commands.list()}
        assert (await sandbox.commands.run("ls /tmp/at-* | wc -l")).stdout.strip() == str(PROCESSES // 5)
        assert (await sandbox.commands.run("pgrep -c -x sleep")).stdout.strip() == str(PROCESSES)
        killed = await asyncio.gather(*(sandbox.commands.kill(pid) for pid in pids))
        assert all(killed)
        # When the call returns the signal was sent; the process ends later.
        until = time.monotonic() + 30
        while pids & {process.pid for process in await sandbox.commands.list()}:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert (await sandbox.commands.run("pgrep -c -x sleep; true")).stdout.strip() == "0", "reaped, too"
    finally:
        await sandbox.kill()


@pytest.mark.container
def test_events_lost_to_a_full_queue_are_reported(server):
    sandbox = Sandbox.create()
    try:
        sandbox.files.make_dir("busy")
        watch = sandbox.files.watch_dir("busy")
        sandbox.files.write("busy/first", "")
        assert any(event.name == "first" for event in watch.get_new_events())
        script = f"until [ -e go ]; do :; done; cd busy; for i in $(seq {FILES}); do : > $i; done; touch ../done"
        sandbox.commands.run(script, background=True, timeout=0)
        # envd is the sandbox's first process; it is stopped while the files are created.
        record = json.loads((server.home / "sandboxes" / f"{sandbox.sandbox_id}.json").read_text())
        sandbox.files.write("go", "")
        os.kill(record["pid"], signal.SIGSTOP)
        try:
            home = f"/proc/{record['pid']}/root/home/user"
            while not os.path.exists(f"{home}/done"):
                pass
        finally:
            os.kill(record["pid"], signal.SIGCONT)
        with pytest.raises(SandboxException, match="overflow"):
            # Events from before the gap are delivered first.
            while True:
                watch.get_new_events()
        again = sandbox.files.watch_dir("busy")
        sandbox.files.write("busy/last", "")
        assert any(event.name == "last" for event in again.get_new_events()), "a new watcher works"
        assert len(sandbox.files.list("busy")) == FILES + 2
    finally:
        sandbox.kill()
