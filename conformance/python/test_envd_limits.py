"""Limits and special cases of envd: full disks, odd file names, huge files, many processes, full-screen programs."""

import functools
import re

import pytest
from e2b import CommandExitException, NotEnoughSpaceException, PtySize, Sandbox

MIB = 1 << 20


def pieces(total):
    piece = bytes(range(256)) * (4 * MIB // 256)
    for _ in range(total // len(piece)):
        yield piece


def test_a_gigabyte_is_uploaded_and_downloaded_in_little_memory(sandbox):
    sandbox.files.write("/home/user/huge", pieces(1024 * MIB), request_timeout=0)
    size = 0
    for piece in sandbox.files.read("/home/user/huge", format="stream", request_timeout=0):
        size += len(piece)
    assert size == 1024 * MIB
    assert sandbox.commands.run("sha256sum huge | cut -c1-8; rm huge").stdout.strip()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", sandbox.commands.run("cat /proc/1/status", user="root").stdout)[1])
    assert peak < 32 * 1024, f"envd grew to {peak} KiB"


def test_a_full_disk_is_reported_and_the_old_file_is_intact(server, sandbox):
    sandbox.files.write("/dev/shm/kept", "old content")
    sandbox.commands.run("head -c 508M /dev/zero > /dev/shm/filler")
    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write("/dev/shm/new", pieces(16 * MIB), request_timeout=0)
    assert not sandbox.files.exists("/dev/shm/new"), "half a file takes room from whole ones"
    # The request announces its length, so the server refuses it before writing.
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "Content-Type": "application/octet-stream"}
    url = sandbox.upload_url("/dev/shm/kept", user="user")
    status, _, body = server.call("POST", "/files?" + url.split("?", 1)[1], b"x" * (16 * MIB), route)
    assert status == 507 and body["code"] == 507, body
    assert sandbox.files.read("/dev/shm/kept") == "old content"


def test_file_names_with_newlines_spaces_and_any_script(sandbox):
    for name in ["two\nlines", " spaces ", "ünïcödé 漢字 😀", "-dash", "quote'\"$(x)`", "a" * 255, "%2e%2e"]:
        sandbox.files.write(f"/home/user/names/{name}", name)
        assert sandbox.files.read(f"/home/user/names/{name}") == name
    listed = [entry.name for entry in sandbox.files.list("/home/user/names")]
    assert len(listed) == 7 and "two\nlines" in listed


def test_file_names_that_are_not_utf8_are_listed(sandbox):
    sandbox.commands.run("mkdir odd && touch odd/$'bad\\xff\\xfename' odd/good")
    names = [entry.name for entry in sandbox.files.list("odd")]
    assert len(names) == 2 and "good" in names
    assert sandbox.is_running()


def test_symlinks_broken_circular_and_chained(sandbox):
    sandbox.commands.run("mkdir l && cd l && ln -s nowhere broken && ln -s b a && ln -s a b && echo x > f && ln -s f one && ln -s one two")
    entries = {entry.name: entry for entry in sandbox.files.list("l")}
    # The SDK omits entries without a type, as a dangling link is.
    assert {"f", "one", "two"} <= set(entries) <= {"broken", "a", "b", "f", "one", "two"}
    assert sandbox.files.get_info("l/two").symlink_target == "/home/user/l/f"
    assert sandbox.files.read("l/two") == "x\n"
    assert sandbox.files.exists("l/broken")
    sandbox.files.remove("l")


def test_five_hundred_concurrent_processes(sandbox):
    handles = [sandbox.commands.run("sleep 100", background=True, timeout=0) for _ in range(25)]
    many = sandbox.commands.run("for i in $(seq 500); do sleep 100 & done; jobs -p | wc -l; kill $(jobs -p)", timeout=60)
    assert many.stdout.strip() == "500"
    assert len(sandbox.commands.list()) == 25
    for handle in handles:
        assert sandbox.commands.kill(handle.pid)
        with pytest.raises(CommandExitException):
            handle.wait()
    assert sandbox.commands.list() == []


def test_orphans_are_reaped(sandbox):
    sandbox.commands.run("for i in $(seq 50); do setsid -f true; done")
    sandbox.commands.run("while ps -eo stat= | grep -q '^Z'; do sleep 0.01; done", timeout=10)


class Screen:
    """A terminal's output, read in chunks. A chunk may end anywhere, and may contain more than the text that was waited for."""

    def __init__(self, handle):
        self.handle, self.rest = handle, ""

    def until(self, text):
        while text not in self.rest:
            _, _, data = next(self.pieces)
            self.rest += (data or b"").decode(errors="replace")
        seen, self.rest = self.rest.split(text, 1)
        return seen + text

    @functools.cached_property
    def pieces(self):
        return iter(self.handle)


def test_full_screen_programs_and_colours(sandbox):
    handle = sandbox.pty.create(PtySize(rows=30, cols=100))
    screen = Screen(handle)
    screen.until("$ ")
    sandbox.pty.send_stdin(handle.pid, b"vi note.txt\n")
    screen.until("note.txt")
    sandbox.pty.send_stdin(handle.pid, b"ihello from vi\x1b:wq\n")
    screen.until("written")
    # Waits for the shell's prompt: a full-screen program discards what is typed while it exits.
    screen.until("$ ")
    assert sandbox.files.read("note.txt") == "hello from vi\n"
    sandbox.pty.send_stdin(handle.pid, b"top\n")
    assert "load average" in screen.until("COMMAND")
    sandbox.pty.send_stdin(handle.pid, b"q")
    screen.until("$ ")
    sandbox.pty.send_stdin(handle.pid, b"ls --color=always -d /tmp; echo do''ne\n")
    assert "\x1b[" in screen.until("done")
    sandbox.pty.kill(handle.pid)


def test_the_sandbox_id_is_in_every_environment_and_in_run(server):
    sandbox = Sandbox.create(envs={"MINE": "1"})
    try:
        environment = dict(line.split("=", 1) for line in sandbox.commands.run("env").stdout.splitlines())
        assert environment["E2B_SANDBOX"] == "true" and environment["E2B_SANDBOX_ID"] == sandbox.sandbox_id
        assert environment["E2B_TEMPLATE_ID"] == sandbox.get_info().template_id
        assert re.fullmatch("[0-9a-f-]{36}", environment["E2B_TEAM_ID"])
        files = sandbox.commands.run("cat /run/e2b/.E2B_SANDBOX; echo; cat /run/e2b/.E2B_SANDBOX_ID; echo; cat /run/e2b/.E2B_TEMPLATE_ID").stdout.split()
        assert files == ["true", sandbox.sandbox_id, environment["E2B_TEMPLATE_ID"]]
        terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
        sandbox.pty.send_stdin(terminal.pid, b"echo id=$E2B_SANDBOX_ID mine=$MINE; exit\n")
        assert f"id={sandbox.sandbox_id} mine=1" in "".join((data or b"").decode() for _, _, data in terminal)
    finally:
        sandbox.kill()


def test_supplementary_groups_of_a_user_are_set(sandbox):
    sandbox.commands.run("groupadd extra && usermod -aG extra user", user="root")
    assert "extra" in sandbox.commands.run("id -Gn").stdout.split()


def test_metadata_is_kept_when_a_file_is_moved(sandbox):
    sandbox.files.write("tagged", "x", metadata={"Colour": "red", "n": "1"})
    assert sandbox.files.get_info("tagged").metadata == {"colour": "red", "n": "1"}
    sandbox.files.rename("tagged", "moved")
    assert sandbox.files.get_info("moved").metadata == {"colour": "red", "n": "1"}
    sandbox.files.write("moved", "y")
    assert not sandbox.files.get_info("moved").metadata


def test_ten_thousand_new_files_are_all_reported(sandbox):
    sandbox.files.make_dir("burst")
    watch = sandbox.files.watch_dir("burst", recursive=True)
    sandbox.commands.run("cd burst && for d in $(seq 100); do mkdir $d && (cd $d && touch $(seq 100)); done", timeout=120)
    seen = {event.name for event in watch.get_new_events() if event.type.value == "create"}
    files = {name for name in seen if "/" in name}
    assert len(files) == 10_000, len(files)
    watch.stop()
