"""What clients and sandboxes share has a total, and whoever takes all that there is locks nobody out."""

import socket
import time
import urllib.parse

import pytest
from conftest import options_of
from e2b import AuthenticationException, Sandbox
from server import Server

# Enough for a handful of clients.
TOTAL = 60


@pytest.fixture(scope="module")
def small():
    server = Server("--max-connections", str(TOTAL))
    yield server
    server.stop()


@pytest.fixture
def cell(small):
    sandbox = Sandbox.create(**options_of(small))
    yield sandbox
    sandbox.kill()


def connect(server):
    url = urllib.parse.urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=10)


def is_open(stream):
    """Whether a connection on which nothing is expected has not been closed."""
    stream.setblocking(False)
    try:
        return stream.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_strangers_with_idle_connections_lock_nobody_out(small, cell):
    ticking = cell.commands.run("for i in $(seq 300); do echo $i; sleep 0.1; done", background=True)
    idle = []
    for _ in range(5 * TOTAL):
        stream = connect(small)
        stream.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(4096).startswith(b"HTTP/1.1 2")
        idle.append(stream)
    assert sum(map(is_open, idle)) < TOTAL
    with Sandbox.create(**options_of(small)) as another:
        assert another.commands.run("echo works").stdout == "works\n"
    assert cell.commands.run("echo still").stdout == "still\n"
    # The stream that was open all the time, too.
    seen = [stdout for stdout, _, _ in zip_some(ticking, 3)]
    assert seen[0].startswith("1\n")
    ticking.kill()
    for stream in idle:
        stream.close()


def zip_some(handle, count):
    for at, output in enumerate(handle):
        yield output
        if at + 1 >= count:
            return


def test_requests_of_one_sandbox_leave_connections_to_the_others(small, cell):
    """Clients of a greedy server in a sandbox, which never answers, and another sandbox."""
    silent = "import socket\ns = socket.create_server(('', 8000), backlog=500)\nheld = []\nprint('ready', flush=True)\nwhile True: held.append(s.accept())\n"
    cell.files.write("/tmp/silent.py", silent)
    handle = cell.commands.run("python3 /tmp/silent.py", background=True)
    for _ in handle:
        break
    waiting = []
    for _ in range(2 * TOTAL):
        stream = connect(small)
        head = f"GET / HTTP/1.1\r\nHost: {cell.get_host(8000)}\r\n\r\n"
        stream.sendall(head.encode())
        waiting.append(stream)
    with Sandbox.create(**options_of(small)) as another:
        assert another.commands.run("echo works").stdout == "works\n"
    assert cell.commands.run("echo works", user="root").stdout == "works\n"
    for stream in waiting:
        stream.close()


def test_wrong_keys_become_slow_and_right_ones_do_not(small, cell):
    # A connection of its own for each key, as a guesser would use.
    def guess(at):
        with pytest.raises(AuthenticationException):
            Sandbox.list(api_key=f"e2b_{at:040x}", api_url=small.url).next_items()

    began = time.monotonic()
    for at in range(30):
        guess(at)
    guessing = time.monotonic() - began
    assert guessing > 3, "thirty guesses, the last ten delayed by 100 ms more each"
    began = time.monotonic()
    for _ in range(5):
        assert cell.commands.run("echo quick").stdout == "quick\n"
        assert Sandbox.list(api_key=small.key, api_url=small.url).next_items()
    assert time.monotonic() - began < guessing
