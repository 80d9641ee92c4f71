"""What a sandbox finds after a restore of its memory snapshot: connections, terminals, timers, clock, identity."""

import socket
import time

import pytest
from conftest import options_of
from e2b import PtySize, Sandbox
from e2b.exceptions import AuthenticationException, TimeoutException
from server import Server
from services import serve, started
from test_inbound import by_headers

# Sends requests over one connection for ever; the file holds the number of responses.
CLIENT = """
import socket, time
link = socket.create_connection(("127.0.0.1", 7000))
count = 0
while True:
    link.sendall(b"x")
    assert link.recv(1) == b"x"
    count += 1
    with open("/tmp/count.new", "w") as file: file.write(str(count))
    import os; os.rename("/tmp/count.new", "/tmp/count")
    time.sleep(0.02)
"""
ECHO = """
import socket
listener = socket.create_server(("127.0.0.1", 7000))
print("ready", flush=True)
link, _ = listener.accept()
while data := link.recv(100): link.sendall(data)
"""
TIMERS = """
import os, select, signal, time
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print("ready", flush=True)
while True:
    signal.pause()
    # Not in the signal handler, which would interrupt itself on a slow machine.
    with open("/tmp/ticks.new", "w") as file: file.write(str(ticks))
    os.rename("/tmp/ticks.new", "/tmp/ticks")
"""


@pytest.fixture
def cell(cold):
    sandbox = Sandbox.create(envs={"OWN": "mine"}, **cold)
    yield sandbox
    sandbox.kill()


def start(sandbox, name, text, ready=True):
    sandbox.files.write(f"/tmp/{name}.py", text)
    handle = sandbox.commands.run(f"exec python3 /tmp/{name}.py", background=True, timeout=0)
    if ready:
        started(handle, "ready\n")
    else:
        handle.disconnect()
    return handle.pid


def grows(sandbox, path):
    """Waits, inside the sandbox, until the number in a file is larger than it is now."""
    sandbox.commands.run(f"until [ -s {path} ]; do sleep 0.01; done; seen=$(cat {path}); until [ $(cat {path}) -gt $seen ]; do sleep 0.01; done", timeout=20)
    return int(sandbox.commands.run(f"cat {path}").stdout)


def test_inner_connections_survive_and_outer_ones_are_closed(cold_server, cell):
    start(cell, "echo", ECHO)
    start(cell, "client", CLIENT, ready=False)
    serve(cell, 8000)
    before = grows(cell, "/tmp/count")
    host, port = cold_server.url.removeprefix("http://").split(":")
    outside = socket.create_connection((host, int(port)), timeout=20)
    head = f"GET /endless HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {cell.sandbox_id}\r\nE2b-Sandbox-Port: 8000\r\n\r\n"
    outside.sendall(head.encode())
    assert b"tick" in outside.recv(1000) + outside.recv(1000)
    cell.pause()
    with pytest.raises(ConnectionResetError):
        while outside.recv(1 << 16):
            pass
    cell.connect()
    assert grows(cell, "/tmp/count") > before, "the same connection, nothing lost"
    assert cold_server.call("GET", "/lost", headers=by_headers(cell))[2] == {"lost": True}, "its server noticed"
    assert cold_server.call("GET", "/echo", headers=by_headers(cell))[0] == 200, "it still listens"


def test_timers_continue_and_the_clock_shows_the_time_that_passed(cell):
    start(cell, "timers", TIMERS)
    before = grows(cell, "/tmp/ticks")
    sleeper = cell.commands.run("sleep 3; echo slept > /tmp/slept", background=True, timeout=0)
    cell.pause()
    time.sleep(2)
    cell.connect()
    assert abs(float(cell.commands.run("date +%s.%N").stdout) - time.time()) < 1
    assert grows(cell, "/tmp/ticks") > before
    cell.commands.run("until [ -e /tmp/slept ]; do sleep 0.05; done", timeout=10)
    assert sleeper.pid not in {process.pid for process in cell.commands.list()}


def test_a_terminal_continues(cell):
    terminal = cell.pty.create(PtySize(rows=30, cols=91), envs={"PS1": "$ "}, timeout=0)
    cell.pty.send_stdin(terminal.pid, b"kept=in-the-shell; cd /tmp; vi /tmp/file\n")
    seen = b""
    for _, _, data in terminal:
        seen += data or b""
        if b'"/tmp/file"' in seen:
            break
    terminal.disconnect()
    cell.pause()
    cell.connect()
    again = cell.pty.connect(terminal.pid)
    cell.pty.resize(terminal.pid, PtySize(rows=40, cols=120))
    cell.pty.send_stdin(terminal.pid, b"ihello\x1b:wq\n")
    seen = b""
    for _, _, data in again:
        seen += data or b""
        # Waits for the shell's prompt: an editor discards what is typed while it exits.
        if seen.rstrip().endswith(b"$"):
            break
    cell.pty.send_stdin(terminal.pid, b"echo end-$kept-$PWD-$(stty size | tr ' ' x); exit 7\n")
    with pytest.raises(Exception) as ended:
        for _, _, data in again:
            seen += data or b""
        again.wait()
    assert b"end-in-the-shell-/tmp-40x120" in seen
    assert getattr(ended.value, "exit_code", None) == 7, ended.value
    assert cell.files.read("/tmp/file") == "hello\n"


def test_a_resumed_sandbox_keeps_its_identity(cell):
    look = "hostname; id -un; pwd; echo $OWN $E2B_SANDBOX_ID $E2B_TEMPLATE_ID $E2B_TEAM_ID; cat /run/e2b/.E2B_SANDBOX_ID /etc/hostname; ulimit -a; ip -o addr 2>/dev/null"
    before = cell.commands.run(look).stdout
    assert cell.sandbox_id in before
    random = {cell.commands.run("od -An -tx1 -N16 /dev/urandom; cat /proc/sys/kernel/random/uuid").stdout for _ in range(2)}
    for _ in range(3):
        cell.pause()
        cell.connect()
        assert cell.commands.run(look).stdout == before
        random.add(cell.commands.run("od -An -tx1 -N16 /dev/urandom; cat /proc/sys/kernel/random/uuid").stdout)
    assert len(random) == 5
    assert cell.commands.run("sudo id -un").stdout == "root\n"


def test_a_fork_has_an_identity_of_its_own(cold_server, cell):
    own = "echo $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX_ID; echo; echo $OWN"
    sleeper = cell.commands.run("sleep 1000", background=True, timeout=0)
    forks = cell.fork(count=3, timeout=60)
    everybody = [cell, *forks]
    tokens = {each.sandbox_id: each._envd_access_token for each in everybody}
    assert len(set(tokens.values())) == 4
    random = "od -An -tx1 -N16 /dev/urandom"
    assert len({each.commands.run(random).stdout for each in everybody}) == 4
    for fork in forks:
        assert fork.commands.run(own).stdout == f"{fork.sandbox_id}\n{fork.sandbox_id}\nmine\n"
        assert sleeper.pid in {process.pid for process in fork.commands.list()}
        for stranger in set(tokens) - {fork.sandbox_id}:
            route = {"E2b-Sandbox-Id": fork.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": tokens[stranger]}
            status, _, body = cold_server.call("GET", "/envs", headers=route)
            assert status == 401, (status, body)
        fork.commands.kill(sleeper.pid)
    assert sleeper.pid in {process.pid for process in cell.commands.list()}
    for fork in forks:
        fork.kill()


def asleep(**more):
    return dict(lifecycle={"on_timeout": "pause", "auto_resume": True}, **more)


def test_only_authorized_traffic_resumes_a_sandbox(cold_server, cold):
    sandbox = Sandbox.create(network={"allow_public_traffic": False}, **asleep(**cold))
    serve(sandbox, 8000)
    sandbox.pause()
    for headers in ({}, {"e2b-traffic-access-token": "0" * 64}):
        assert cold_server.call("GET", "/echo", headers=by_headers(sandbox, **headers))[0] == 403
        assert sandbox.get_info().state.value == "paused"
    token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
    assert cold_server.call("GET", "/echo", headers=by_headers(sandbox, **token))[0] == 200
    assert sandbox.get_info().state.value == "running"
    sandbox.kill()


def test_concurrent_requests_wait_for_one_resume(cold_server, cold):
    from concurrent.futures import ThreadPoolExecutor

    sandbox = Sandbox.create(**asleep(**cold))
    serve(sandbox, 8000)
    sandbox.pause()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(cold_server.call, "GET", "/echo", None, by_headers(sandbox)) for _ in range(8)]
        assert [call.result()[0] for call in calls] == [200] * 8
    events = cold_server.call("GET", f"/events/sandboxes/{sandbox.sandbox_id}")[2]
    assert sum(event["type"].endswith("resumed") for event in events) == 1, "they share one resume"
    sandbox.kill()


@pytest.mark.parametrize("mode", ["full", "filesystem"])
def test_without_auto_resume_traffic_resumes_nothing(cold_server, cold, mode):
    sandbox = Sandbox.create(lifecycle={"on_timeout": {"action": "pause", "mode": mode}}, **cold)
    sandbox.pause(mode=mode)
    assert cold_server.call("GET", "/", headers=by_headers(sandbox))[0] == 502
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")
    info = sandbox.get_info()
    assert (info.state.value, cold_server.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]["pauseMode"]) == ("paused", mode)
    sandbox.connect()
    assert sandbox.commands.run("echo up").stdout == "up\n"
    sandbox.kill()


def test_frozen_processes_are_thawed():
    """A resume that only thaws the frozen processes looks the same as a restore."""
    server = Server("--keep-frozen-max", "4")
    try:
        options = options_of(server)
        sandbox = Sandbox.create(envs={"OWN": "mine"}, **options)
        start(sandbox, "timers", TIMERS)
        start(sandbox, "echo", ECHO)
        start(sandbox, "client", CLIENT, ready=False)
        pid = sandbox.commands.run("sleep 1000", background=True, timeout=0).pid
        for _ in range(5):
            ticks, count = grows(sandbox, "/tmp/ticks"), grows(sandbox, "/tmp/count")
            sandbox.pause()
            assert sandbox.is_running() is False
            sandbox.connect()
            assert grows(sandbox, "/tmp/ticks") > ticks and grows(sandbox, "/tmp/count") > count
            assert pid in {process.pid for process in sandbox.commands.list()}
            assert sandbox.commands.run("echo $OWN").stdout == "mine\n"
        assert "was_frozen=true" in server.tail()
        sandbox.pause()
        sandbox.kill()
    finally:
        server.stop()


def test_tokens_are_valid_after_a_resume(cold_server, cold, cell):
    token = cell._envd_access_token
    cell.files.write("note", "kept")
    url = cell.download_url("note", use_signature_expiration=600)
    cell.pause()
    again = Sandbox.connect(cell.sandbox_id, **cold)
    assert again._envd_access_token == token
    path = url.split(cold_server.url)[1]
    route = {"E2b-Sandbox-Id": cell.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert cold_server.call("GET", path, headers=route)[2] == b"kept"
    route["X-Access-Token"] = "0" * 64
    assert cold_server.call("GET", "/envs", headers=route)[0] == 401
    with pytest.raises(AuthenticationException):
        Sandbox.connect(cell.sandbox_id, api_key="e2b_" + "0" * 40, api_url=cold_server.url)
