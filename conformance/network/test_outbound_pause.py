"""What a pause does to connections that a sandbox has opened: outer ones are closed, those inside the sandbox survive."""

import pytest
from conftest import RESOLVER
from e2b import Sandbox

from server import Server
from services import started
from fake_network import ECHO, PUBLIC

# Sends requests over an outer and an inner connection in turn, counts the responses of each, and reports a lost connection once.
ASKER = f"""
import os, socket, threading, time
def note(name, text):
    with open("/tmp/" + name + ".new", "w") as file: file.write(str(text))
    os.rename("/tmp/" + name + ".new", "/tmp/" + name)
def serve(listener):
    link, _ = listener.accept()
    while data := link.recv(100): link.sendall(data)
listener = socket.create_server(("127.0.0.1", 7000))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
links = {{"within": socket.create_connection(("127.0.0.1", 7000)), "outside": socket.create_connection(("{PUBLIC}", {ECHO}))}}
counts = dict.fromkeys(links, 0)
while links:
    for name, link in list(links.items()):
        try:
            link.sendall(b"x")
            if link.recv(1) != b"x": raise ConnectionError("closed")
        except OSError as error:
            del links[name]
            note(name + "-lost", type(error).__name__)
            continue
        counts[name] += 1
        note(name, counts[name])
        if name == "outside" and counts[name] == 1: print("both answer", flush=True)
    time.sleep(0.02)
"""


@pytest.fixture(params=["restored", "thawed"])
def pausing(world, request):
    hot = {"restored": "0", "thawed": "4"}[request.param]
    server = Server("--dns", f"{RESOLVER}:53", "--keep-frozen-max", hot, "--slots", "2", "--pool", "0")
    yield {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}
    server.stop()


def test_a_pause_closes_outer_connections_and_keeps_inner_ones(pausing):
    sandbox = Sandbox.create(**pausing)
    sandbox.files.write("/tmp/asker.py", ASKER)
    asker = started(sandbox.commands.run("exec python3 /tmp/asker.py", background=True, timeout=0), "both answer")
    before = int(sandbox.files.read("/tmp/within"))
    assert sandbox.pause() is True
    sandbox.connect()
    sandbox.commands.run(f"until [ $(cat /tmp/within) -gt $(({before} + 20)) ]; do sleep 0.01; done", timeout=20)
    assert asker.pid in {process.pid for process in sandbox.commands.list()}
    assert not sandbox.files.exists("/tmp/within-lost"), "the same connection within, nothing lost"
    sandbox.commands.run("until [ -e /tmp/outside-lost ]; do sleep 0.01; done", timeout=20)
    assert sandbox.files.read("/tmp/outside-lost") in ("ConnectionResetError", "BrokenPipeError", "ConnectionError")
    again = f"import socket; s = socket.create_connection(('{PUBLIC}', {ECHO})); s.sendall(b'x'); print(s.recv(1))"
    assert sandbox.commands.run(f'python3 -c "{again}"').stdout == "b'x'\n", "new ones are opened as before"
    sandbox.kill()
