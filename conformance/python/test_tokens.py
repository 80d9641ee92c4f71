"""No secret that opens a sandbox, or the control plane, is ever inside one: not in its memory, not in its files. What user code
reads there, or connects to, gives it nothing that it does not have already."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest
from e2b import Sandbox

pytestmark = pytest.mark.every_engine

MARKER = "marker-that-is-in-memory-0123456789"
# Prints every text in envd's memory that looks like one of our tokens.
TOKENS_IN_MEMORY = r"""
import re
found = set()
with open("/proc/1/mem", "rb", 0) as memory:
    for line in open("/proc/1/maps"):
        span, access, *_ = line.split()
        start, end = (int(number, 16) for number in span.split("-"))
        if "r" not in access or "[v" in line:
            continue
        try:
            memory.seek(start)
            content = memory.read(end - start)
        except (OSError, ValueError):
            continue
        found |= set(re.findall(rb"[0-9a-f]{64}", content))
for token in sorted(found):
    print(token.decode())
"""
# Asks envd from inside the sandbox, as a program of an unprivileged user would.
FROM_INSIDE = r"""
import socket, sys
path, source, body = sys.argv[1], sys.argv[2], sys.argv[3].encode()
with socket.socket() as connection:
    connection.settimeout(2)
    # IP_FREEBIND: binds to addresses that are not the machine's own, too.
    connection.setsockopt(socket.IPPROTO_IP, 15, 1)
    connection.bind((source, 0))
    try:
        connection.connect(("127.0.0.1", 49983))
    except OSError as error:
        print("no connection")
        sys.exit()
    verb = "POST" if body else "GET"
    head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    print(connection.recv(4096).decode().split(" ")[1])
"""


def status(url, headers, body=None):
    request = urllib.request.Request(url, body, headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def to_envd(server, sandbox, path, headers, body=None):
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    return status(server.url + path, routing | headers, body)


def files_below(directory):
    return [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


def contains(path, needles):
    """Those of the needles that a file contains, which may be larger than memory."""
    found, kept = set(), b""
    with open(path, "rb") as file:
        while chunk := file.read(16 << 20):
            window = kept + chunk
            found |= {needle for needle in needles if needle.encode() in window}
            kept = window[-256:]
    return found


@pytest.fixture
def busy(server):
    """A sandbox to which everything was sent that clients send with a secret."""
    sandbox = Sandbox.create(envs={"MARKER": MARKER}, network={"allow_public_traffic": False}, timeout=600)
    token, traffic = sandbox._envd_access_token, sandbox.traffic_access_token
    assert token and traffic
    sandbox.files.write("hello.txt", "hello")
    assert sandbox.files.read("hello.txt") == "hello"
    link = urllib.parse.urlsplit(sandbox.download_url("hello.txt", use_signature_expiration=600))
    assert to_envd(server, sandbox, f"/files?{link.query}", {}) == 200
    signature = urllib.parse.parse_qs(link.query)["signature"][0]
    sandbox.commands.run("python3 -m http.server 8000", background=True)
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    secrets = {"E2b-Traffic-Access-Token": traffic, "X-Access-Token": token, "X-API-Key": server.key}
    sandbox.commands.run("until curl -s localhost:8000 >/dev/null; do sleep 0.1; done")
    assert status(server.url + "/", routing | secrets) == 200
    assert to_envd(server, sandbox, "/envs", secrets) == 200
    yield sandbox, {"envd token": token, "traffic token": traffic, "signature": signature, "API key": server.key}
    sandbox.kill()


def test_no_snapshot_contains_a_secret_of_the_server(server, busy):
    sandbox, secrets = busy
    secrets = secrets | {"admin token": server.admin_token}
    snapshot = sandbox.create_snapshot()
    needles = {MARKER, *secrets.values()}
    found = set()
    for path in files_below(server.home / "snapshots") + files_below(server.home / "sandboxes"):
        found |= contains(path, needles)
    assert MARKER in found, "the search finds nothing at all"
    assert not [name for name, secret in secrets.items() if secret in found]
    Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_what_a_snapshot_s_memory_contains_opens_nothing_elsewhere(server, busy):
    origin, _ = busy
    snapshot = origin.create_snapshot()
    with Sandbox.create(snapshot.snapshot_id, timeout=600) as copy:
        copy.files.write("/tmp/read.py", TOKENS_IN_MEMORY)
        found = copy.commands.run("python3 /tmp/read.py", user="root").stdout.split()
        assert found, "envd's memory was not read, or its inner token not recognised"
        for token in found:
            for sandbox in (origin, copy):
                assert to_envd(server, sandbox, "/envs", {"X-Access-Token": token}) == 401
    Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_user_code_has_no_authority_over_envd(server, busy):
    sandbox, _ = busy
    sandbox.files.write("/tmp/ask.py", FROM_INSIDE)
    run = json.dumps({"process": {"cmd": "/bin/id", "args": []}})
    asked = {
        ("/health", ""): "204",
        ("/envs", ""): "401",
        ("/files?path=/etc/shadow", ""): "401",
        ("/init", "{}"): "401",
        ("/filesystem.Filesystem/Stat", '{"path":"/root"}'): "401",
        ("/process.Process/Start", run): "401",
    }
    for user in ("user", "root"):
        for (path, body), answer in asked.items():
            command = f"python3 /tmp/ask.py '{path}' 127.0.0.1 '{body}'"
            assert sandbox.commands.run(command, user=user).stdout.strip() == answer, (user, path)
    # The address that envd trusts cannot be used by what runs in the sandbox.
    outcome = sandbox.commands.run("python3 /tmp/ask.py /envs 169.254.0.22 ''").stdout.strip()
    assert outcome == "no connection"


def test_the_edge_checks_tokens_as_envd_does(server, busy):
    sandbox, secrets = busy
    token = secrets["envd token"]
    assert to_envd(server, sandbox, "/health", {}) == 204
    for headers in ({}, {"X-Access-Token": "wrong"}, {"X-Access-Token": secrets["traffic token"]}):
        for path in ("/envs", "/metrics", "/files?path=hello.txt", "/no-such-path"):
            assert to_envd(server, sandbox, path, headers) == 401, (path, headers)
        assert to_envd(server, sandbox, "/files/compose", headers, b"{}") == 401
        stat = {"Content-Type": "application/json"} | headers
        assert to_envd(server, sandbox, "/filesystem.Filesystem/Stat", stat, b'{"path":"/"}') == 401
    assert to_envd(server, sandbox, "/no-such-path", {"X-Access-Token": token}) == 404
    link = urllib.parse.urlsplit(sandbox.download_url("hello.txt"))
    for query, answer in [(link.query, 200), (link.query.replace("hello", "other"), 401), ("path=hello.txt", 401)]:
        assert to_envd(server, sandbox, f"/files?{query}", {}) == answer, query
    assert re.search("signature=", link.query)
