"""Terminals through the synchronous SDK."""

from e2b import PtySize


def drain(handle):
    return b"".join(data for _, _, data in handle if data).decode(errors="replace")


def read_until(events, text):
    seen = ""
    for _, _, data in events:
        seen += data.decode(errors="replace")
        if text in seen:
            return seen
    raise AssertionError(f"ended before {text!r}: {seen!r}")


def test_a_terminal_has_its_size_and_takes_another(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"OWN": "variable"})
    sandbox.pty.send_stdin(handle.pid, b"tput cols; echo $OWN; tty\n")
    events = iter(handle)
    output = read_until(events, "/dev/pts/")
    assert "80\r\n" in output and "variable\r\n" in output
    sandbox.pty.resize(handle.pid, PtySize(rows=40, cols=123))
    sandbox.pty.send_stdin(handle.pid, b"tput cols; tput lines; exit 0\n")
    assert "123\r\n40\r\n" in drain(events)


def test_job_control_and_interrupt(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(handle.pid, b"echo $((40+2)); sleep 1000\n")
    events = iter(handle)
    read_until(events, "42\r\n")
    sandbox.pty.send_stdin(handle.pid, b"\x03")
    sandbox.pty.send_stdin(handle.pid, b"echo after=$?; exit 0\n")
    assert "after=130" in drain(events)


def test_a_killed_terminal_ends(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(handle.pid) is True
    drain(handle)
    assert sandbox.pty.kill(handle.pid) is False
