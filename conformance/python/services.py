"""Starts servers inside sandboxes. Each function returns once the server's own output says that it listens, so that a pause, a fork or a
crash of our server comes after that.
"""

import pathlib

import echo_server

SCRIPT = pathlib.Path(echo_server.__file__).read_text()


def started(handle, words):
    """Reads a command's output until it contains `words`, then disconnects; the command runs on."""
    said = ""
    for stdout, stderr, _ in handle:
        said += (stdout or "") + (stderr or "")
        if words in said:
            handle.disconnect()
            return handle
    raise AssertionError(f"ended before it said {words!r}: {said!r}")


def serving(sandbox, port, address="127.0.0.1"):
    """Starts a web server of the user's home directory; returns its handle."""
    command = f"exec python3 -u -m http.server {port} --bind {address}"
    return started(sandbox.commands.run(command, background=True, timeout=0), "Serving HTTP")


def serve(sandbox, port, address="127.0.0.1"):
    """Starts the server of `echo_server.py`; returns its handle."""
    sandbox.files.write("/tmp/echo_server.py", SCRIPT)
    command = f"exec python3 /tmp/echo_server.py {address} {port}"
    return started(sandbox.commands.run(command, background=True, timeout=0), "listening\n")
