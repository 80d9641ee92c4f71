"""Servers that tests start inside sandboxes. Each function returns once its server listens, and says so itself: what comes
next, be it a pause, a fork or the death of the platform's server, finds it listening.
"""

import pathlib

import echo_server

SCRIPT = pathlib.Path(echo_server.__file__).read_text()


def started(handle, words):
    """Reads a command's output until it has said `words`, and lets go of it; it runs on."""
    said = ""
    for stdout, stderr, _ in handle:
        said += (stdout or "") + (stderr or "")
        if words in said:
            handle.disconnect()
            return handle
    raise AssertionError(f"ended before it said {words!r}: {said!r}")


def serving(sandbox, port, address="127.0.0.1"):
    """A web server with the files of the user's home; answers its handle."""
    command = f"exec python3 -u -m http.server {port} --bind {address}"
    return started(sandbox.commands.run(command, background=True, timeout=0), "Serving HTTP")


def serve(sandbox, port, address="127.0.0.1"):
    """The server of `echo_server.py`; answers its handle."""
    sandbox.files.write("/tmp/echo_server.py", SCRIPT)
    command = f"exec python3 /tmp/echo_server.py {address} {port}"
    return started(sandbox.commands.run(command, background=True, timeout=0), "listening\n")
