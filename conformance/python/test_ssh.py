"""SSH to sandboxes with OpenSSH's own programs: shells, commands, files, forwarding, and who is let in."""

import os
import pathlib
import re
import socket
import socketserver
import subprocess
import threading
import time

import pytest
from e2b import Sandbox

from server import Server
from services import serving


class Client:
    """OpenSSH's programs with a key of their own and a file of known hosts."""

    def __init__(self, directory, server):
        self.dir, self.server = directory, server
        self.port = int((server.data / "ssh-address").read_text().rsplit(":", 1)[1])
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", directory / "key"], check=True)
        self.options = [
            "-F", "none", "-o", f"UserKnownHostsFile={directory / 'known'}", "-o", "StrictHostKeyChecking=accept-new",
            "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(directory / "key"), "-o", "LogLevel=ERROR",
        ]

    def run(self, sandbox, *command, words=(), **options):
        line = ["ssh", *self.options, "-p", str(self.port), *words, f"{sandbox.sandbox_id}@127.0.0.1", *command]
        return subprocess.run(line, capture_output=True, timeout=60, **options)


@pytest.fixture(scope="module")
def ssh_server():
    server = Server("--ssh-listen", "127.0.0.1:0")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(ssh_server, tmp_path_factory):
    client = Client(tmp_path_factory.mktemp("ssh"), ssh_server)
    added = ssh_server.cli("ssh-key", "add", str(client.dir / "key.pub"))
    assert "SHA256:" in added and "(tests)" in added
    return client


@pytest.fixture(scope="module")
def box(ssh_server):
    sandbox = Sandbox.create(api_key=ssh_server.key, api_url=ssh_server.url, sandbox_url=ssh_server.url)
    yield sandbox
    sandbox.kill()


def test_commands_have_input_output_and_exit_codes(client, box):
    done = client.run(box, "cat; echo out; echo err >&2; id -un; exit 7", input=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\nout\nuser\n", b"err\n")
    data = os.urandom(3 << 20)
    assert client.run(box, "cat", input=data).stdout == data
    # OpenSSH's client has 255 for a process that a signal ended.
    assert client.run(box, "kill -KILL $$").returncode == 255
    assert client.run(box, "echo $LC_TEST", words=["-o", "SetEnv=LC_TEST=yes"]).stdout == b"yes\n"
    assert client.run(box, "echo $PATH", words=["-o", "SetEnv=LD_PRELOAD=/x"]).returncode == 0


def test_a_terminal_has_a_size_and_job_control(client, box):
    # `script` gives the client a terminal.
    line = " ".join(["ssh", "-tt", *client.options, "-p", str(client.port), f"{box.sandbox_id}@127.0.0.1"])
    terminal = subprocess.Popen(["script", "-qec", f"stty rows 41 cols 132; {line}", "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    terminal.stdin.write(b"stty size; tty; sleep 1000\n")
    terminal.stdin.flush()
    seen = b""
    while not re.search(rb"/dev/pts/\d+\r\n", seen):
        seen += os.read(terminal.stdout.fileno(), 4096)
    terminal.stdin.write(b"\x03exit 5\n")
    terminal.stdin.flush()
    rest = terminal.communicate(timeout=30)[0]
    assert b"41 132" in seen, seen
    assert terminal.returncode == 5, rest


def test_files_are_copied(client, box, tmp_path):
    big = os.urandom(9 << 20)
    source = tmp_path / "with space and \u00e4"
    source.mkdir()
    (source / "big").write_bytes(big)
    (source / "empty").touch()
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o750)
    target = f"{box.sandbox_id}@127.0.0.1:/tmp/copied"
    scp = ["scp", *client.options, "-P", str(client.port), "-r", "-p"]
    subprocess.run([*scp, str(source), target], check=True, timeout=60)
    assert box.commands.run("stat -c %a /tmp/copied/run && stat -c %s /tmp/copied/big").stdout == "750\n9437184\n"
    subprocess.run([*scp, target, str(tmp_path / "back")], check=True, timeout=60)
    assert (tmp_path / "back/big").read_bytes() == big and (tmp_path / "back/empty").read_bytes() == b""
    batch = "mkdir /tmp/made\nput {0} /tmp/made/a\nrename /tmp/made/a /tmp/made/b\nls -l /tmp/made\nchmod 600 /tmp/made/b\nln -s b /tmp/made/link\nrm /tmp/made/link\n-get /nowhere\n"
    sftp = ["sftp", *client.options, "-P", str(client.port), "-b", "-", f"{box.sandbox_id}@127.0.0.1"]
    done = subprocess.run(sftp, input=batch.format(f'"{source / "run"}"'), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "/tmp/made/b" in done.stdout, done
    assert box.commands.run("stat -c '%a %U' /tmp/made/b").stdout == "600 user\n"
    # The rights are the user's.
    refused = subprocess.run(sftp, input="put /etc/hostname /etc/shadow\n", capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "ermission denied" in refused.stderr


def test_git_works_over_it(client, box, tmp_path):
    box.commands.run("git init -q --bare /tmp/repo.git -b main")
    environment = os.environ | {"GIT_SSH_COMMAND": " ".join(["ssh", *client.options, "-p", str(client.port)])}
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, env=environment, capture_output=True)
    git("init", "-q", "-b", "main")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "first")
    git("push", "-q", f"{box.sandbox_id}@127.0.0.1:/tmp/repo.git", "main")
    assert "first" in box.commands.run("git -C /tmp/repo.git log --oneline main").stdout


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_ports_are_forwarded(client, box):
    serving(box, 8123)
    local = free_port()
    words = ["-N", "-L", f"127.0.0.1:{local}:localhost:8123", "-o", "ExitOnForwardFailure=yes"]
    line = ["ssh", *client.options, "-p", str(client.port), *words, f"{box.sandbox_id}@127.0.0.1"]
    forwarding = subprocess.Popen(line)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                stream = socket.create_connection(("127.0.0.1", local))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.05)
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert stream.makefile("rb").readline().startswith(b"HTTP/1.0 200")
    finally:
        forwarding.terminate()
        forwarding.wait()
    # To other hosts go connections of the sandbox itself, which reach nothing private.
    assert client.run(box, words=["-W", "10.0.0.1:80"], input=b"GET / HTTP/1.0\r\n\r\n").stdout == b""
    assert client.run(box, words=["-W", "localhost:1"], input=b"").returncode == 255


class Greeting(socketserver.BaseRequestHandler):
    """Says what it was sent, when the sender has ended."""

    def handle(self):
        said = b""
        while piece := self.request.recv(65536):
            said += piece
        self.request.sendall(b"you said " + said[:20] + b" %d" % len(said))


def test_connections_inside_reach_the_client(client, box):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeting) as own:
        own.daemon_threads = True
        threading.Thread(target=own.serve_forever, daemon=True).start()
        words = ["-R", f"0:127.0.0.1:{own.server_address[1]}", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=INFO"]
        line = ["ssh", *client.options[:-2], *words, "-p", str(client.port), f"{box.sandbox_id}@127.0.0.1", "echo ready; sleep 1000"]
        forwarding = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert forwarding.stdout.readline() == "ready\n"
            port = int(re.search(r"Allocated port (\d+)", forwarding.stderr.readline())[1])
            program = f"""
import socket
links = [socket.create_connection(("127.0.0.1", {port})) for _ in range(3)]
for number, link in enumerate(links):
    link.sendall(b"%d" % number + b"x" * 2_000_000); link.shutdown(socket.SHUT_WR)
for link in links: print(link.makefile().read())
"""
            box.files.write("/tmp/links.py", program)
            said = box.commands.run("python3 /tmp/links.py").stdout.splitlines()
            assert said == [f"you said {number}{'x' * 19} 2000001" for number in range(3)]
        finally:
            forwarding.terminate()
            forwarding.wait()
        # The port is free again as soon as the client is gone.
        end = time.monotonic() + 20
        while "refused" not in (said := box.commands.run(f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' 2>&1; true").stdout):
            assert time.monotonic() < end, said
        own.shutdown()


def test_agents_and_displays_are_not_forwarded(client, box):
    assert client.run(box, "echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}", words=["-A", "-X"]).stdout == b"none none\n"


def test_a_paused_sandbox_wakes_up(client, ssh_server):
    sandbox = Sandbox.create(lifecycle={"on_timeout": "pause", "auto_resume": True}, api_key=ssh_server.key, api_url=ssh_server.url, sandbox_url=ssh_server.url)
    try:
        sandbox.commands.run("echo kept > /dev/shm/memory")
        sandbox.pause()
        assert client.run(sandbox, "cat /dev/shm/memory").stdout == b"kept\n"
    finally:
        sandbox.kill()


def password(client, sandbox_id, secret):
    """Logs in with a password, by the program that OpenSSH asks for it."""
    ask = client.dir / "ask"
    ask.write_text(f"#!/bin/sh\necho '{secret}'\n")
    ask.chmod(0o700)
    options = ["-F", "none", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
               "-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", "-p", str(client.port)]
    environment = os.environ | {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    return subprocess.run(["ssh", *options, f"{sandbox_id}@127.0.0.1", "echo in"], capture_output=True, env=environment, timeout=60)


def test_only_the_team_is_let_in(client, box, ssh_server, tmp_path):
    assert password(client, box.sandbox_id, ssh_server.key).stdout == b"in\n"
    admin = {"X-Admin-Token": ssh_server.admin_token}
    team = ssh_server.call("POST", "/admin/teams", {"name": "others"}, admin)[2]
    other = ssh_server.call("POST", f"/admin/teams/{team['teamID']}/api-keys", {"name": "k"}, admin)[2]["key"]
    refusals = [password(client, box.sandbox_id, other), password(client, "i" * 20, other), password(client, "nobody", other)]
    stranger = Client(tmp_path, ssh_server)
    refusals += [stranger.run(box, "id"), stranger.run(box, "id", words=["-o", "User=root"])]
    for refused in refusals:
        assert refused.returncode == 255 and b"Permission denied" in refused.stderr, refused
    # A team that is blocked uses nothing, also by SSH.
    own = ssh_server.call("GET", "/teams", headers=admin)[2][0]["teamID"]
    assert ssh_server.call("PATCH", f"/admin/teams/{own}", {"blocked": True}, admin)[0] == 200
    assert client.run(box, "id").returncode == 255
    assert ssh_server.call("PATCH", f"/admin/teams/{own}", {"blocked": False}, admin)[0] == 200
    # The other team's key of the same name leads to no sandbox of this one.
    options = {"X-API-Key": other}
    public = (client.dir / "key.pub").read_text()
    status, _, key = ssh_server.call("POST", "/cofferdam/v1/ssh-keys", {"publicKey": public}, options)
    assert status == 201
    assert client.run(box, "id").returncode == 0
    assert ssh_server.call("DELETE", f"/cofferdam/v1/ssh-keys/{key['sshKeyID']}")[0] == 404
    assert ssh_server.call("DELETE", f"/cofferdam/v1/ssh-keys/{key['sshKeyID']}", headers=options)[0] == 204


def test_keys_are_checked_listed_and_deleted(client, box, ssh_server, tmp_path):
    for text, message in [("", "no SSH public key"), ("ssh-rsa AAAA", "ed25519"), ((client.dir / "key").read_text(), "private key")]:
        status, _, body = ssh_server.call("POST", "/cofferdam/v1/ssh-keys", {"publicKey": text})
        assert status == 400 and message in body["message"]
    again = ssh_server.call("POST", "/cofferdam/v1/ssh-keys", {"publicKey": (client.dir / "key.pub").read_text()})
    assert again[0] == 400 and "already" in again[2]["message"]
    second = Client(tmp_path, ssh_server)
    id = ssh_server.cli("ssh-key", "add", str(second.dir / "key.pub"), "--name", "second").split()[0]
    assert "second" in ssh_server.cli("ssh-key", "list")
    assert second.run(box, "true").returncode == 0
    ssh_server.cli("ssh-key", "delete", id)
    assert second.run(box, "true").returncode == 255


def test_the_server_keeps_its_key(client, box, ssh_server):
    assert ssh_server.cli("sandbox", "ssh", box.sandbox_id) == f"ssh -p {client.port} {box.sandbox_id}@127.0.0.1\n"
    before = pathlib.Path(client.dir / "known").read_text()
    ssh_server.process.terminate()
    ssh_server.process.wait()
    ssh_server.options = ("--ssh-listen", f"127.0.0.1:{client.port}", "--sandbox-ca", "none")
    ssh_server.restart()
    assert client.run(box, "echo again").stdout == b"again\n"
    assert pathlib.Path(client.dir / "known").read_text() == before


def test_who_does_not_log_in_is_limited(client):
    held, refused = [], 0
    for _ in range(40):
        stream = socket.create_connection(("127.0.0.1", client.port))
        stream.settimeout(5)
        try:
            greeting = stream.recv(64)
        except ConnectionResetError:
            greeting = b""
        if greeting.startswith(b"SSH-2.0-Cofferdam"):
            held.append(stream)
        else:
            refused += 1
    assert 0 < len(held) <= 16 and refused >= 24
    for stream in held:
        stream.close()
