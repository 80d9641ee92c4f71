"""Terminals through the synchronous SDK."""

from e2b import PtySize


class Screen:
    """A terminal's output; reading waits for an expected text."""

    def __init__(self, handle):
        self.events = iter(handle)
        self.unread = ""

    def until(self, text):
        """Returns the output up to and including `text`."""
        while text not in self.unread:
            for _, _, data in self.events:
                self.unread += data.decode(errors="replace")
                break
            else:
                raise AssertionError(f"ended before {text!r}: {self.unread!r}")
        seen, _, self.unread = self.unread.partition(text)
        return seen + text

    def rest(self):
        return self.unread + "".join(data.decode(errors="replace") for _, _, data in self.events)


def test_a_terminal_has_a_size_and_is_resized(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"OWN": "variable"})
    screen = Screen(handle)
    screen.until("$ ")
    sandbox.pty.send_stdin(handle.pid, b"tput cols; echo $OWN; tty\n")
    seen = screen.until("/dev/pts/")
    assert "80\r\n" in seen and "variable\r\n" in seen
    screen.until("$ ")
    sandbox.pty.resize(handle.pid, PtySize(rows=40, cols=123))
    sandbox.pty.send_stdin(handle.pid, b"tput cols; tput lines; exit 0\n")
    assert "123\r\n40\r\n" in screen.rest()


def test_job_control_and_interrupt(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    screen.until("$ ")
    sandbox.pty.send_stdin(handle.pid, b"cat\n")
    sandbox.commands.run("until ps -C cat -o stat= | grep -qF +; do sleep 0.01; done", timeout=10)
    sandbox.pty.send_stdin(handle.pid, b"\x03")
    # Waits for the shell's prompt: the shell discards what is typed before.
    screen.until("^C")
    screen.until("$ ")
    sandbox.pty.send_stdin(handle.pid, b"echo after=$?; exit 0\n")
    assert "after=130" in screen.rest()


def test_a_killed_terminal_ends(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(handle.pid) is True
    Screen(handle).rest()
    assert sandbox.pty.kill(handle.pid) is False
