"""Outgoing traffic: a sandbox reaches the public internet through the server, and neither the host nor private networks."""

import http.server
import socketserver
import threading
import time
import urllib.request

import pytest
from e2b import Sandbox

from server import ENGINE, Server
from services import serving
from fake_network import ECHO, HOST, METADATA, NAME, PRIVATE, PUBLIC, PUBLIC6, REBINDING, RESOLVER


def curl(sandbox, *words):
    """The response's body, or None when nothing was reached. Fails soon: a blocked connection is refused, not left to time out."""
    command = "curl --silent --show-error --max-time 5 " + " ".join(f"'{word}'" for word in words) + " || echo exit=$?"
    output = sandbox.commands.run(command).stdout
    assert "exit=28" not in output, "a blocked connection must fail at once, not time out"
    return None if "exit=" in output else output


@pytest.fixture
def host_services(world):
    """Listeners on the host: on loopback, on its public address, on all addresses."""

    class Secret(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"secret of the host")
            reached.append(self.path)

        def log_message(self, *_):
            pass

    class Listening(http.server.ThreadingHTTPServer):
        def server_bind(self):
            # Without the look-up of its own name, which waits for a resolver that this network does not have.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = self.server_address

    reached = []
    servers = [Listening((address, 9000 + n), Secret) for n, address in enumerate(["127.0.0.1", HOST, "0.0.0.0"])]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield reached
    for server in servers:
        server.shutdown()
        server.server_close()


def test_public_addresses_are_reached_over_ipv4_and_ipv6(sandbox):
    assert curl(sandbox, f"http://{PUBLIC}/") == f"hello from ::ffff:{PUBLIC} host {PUBLIC}\n"
    assert curl(sandbox, f"http://{PUBLIC}:8080/").startswith("hello")
    assert curl(sandbox, f"http://[{PUBLIC6}]/") == f"hello from {PUBLIC6} host [{PUBLIC6}]\n"


def test_names_are_resolved_by_the_servers_resolver(sandbox):
    assert curl(sandbox, f"http://{NAME}/") == f"hello from ::ffff:{PUBLIC} host {NAME}\n"
    assert sandbox.commands.run(f"getent hosts {NAME}").stdout.split()[0] == PUBLIC
    assert curl(sandbox, "http://no-such-name.example.test/") is None


@pytest.mark.parametrize(
    "address",
    [METADATA, PRIVATE, HOST, "203.0.113.2", f"[::ffff:{METADATA}]", f"[::ffff:{PRIVATE}]", "0.0.0.0", "[fe80::1]", REBINDING],
)
def test_metadata_private_and_host_addresses_are_unreachable(sandbox, address):
    if address == "203.0.113.2":
        assert curl(sandbox, f"http://{address}/").startswith("hello"), "a neighbour of the host with a public address is public"
    else:
        assert curl(sandbox, f"http://{address}/") is None


def test_no_service_of_the_host_is_reachable(server, sandbox, host_services):
    for port in [9000, 9001, 9002]:
        for address in ["127.0.0.1", "localhost", HOST, "0.0.0.0", "[::1]", f"[::ffff:{HOST}]", "[2001:db8::1]"]:
            assert curl(sandbox, f"http://{address}:{port}/") is None, (address, port)
    own_port = server.url.rsplit(":", 1)[1]
    assert curl(sandbox, f"http://127.0.0.1:{own_port}/health") is None
    assert curl(sandbox, f"http://{HOST}:{own_port}/health") is None
    assert host_services == []


def test_two_sandboxes_do_not_reach_each_other(server, sandbox):
    other = Sandbox.create()
    try:
        serving(other, 8000, "0.0.0.0")
        route = {"E2b-Sandbox-Id": other.sandbox_id, "E2b-Sandbox-Port": "8000"}
        assert server.call("GET", "/", headers=route)[0] == 200
        for address in ["127.0.0.1", "0.0.0.0", "[::1]", HOST]:
            assert curl(sandbox, f"http://{address}:8000/") is None
    finally:
        other.kill()


def test_a_sandbox_without_internet_reaches_nothing_and_resolves_no_names(server):
    sandbox = Sandbox.create(allow_internet_access=False)
    try:
        assert curl(sandbox, f"http://{PUBLIC}/") is None
        assert curl(sandbox, f"http://[{PUBLIC6}]/") is None
        assert curl(sandbox, f"http://{NAME}/") is None
        serving(sandbox, 8000)
        assert "Directory listing" in curl(sandbox, "http://127.0.0.1:8000/")
    finally:
        sandbox.kill()


def test_allowed_networks_and_names_are_reachable_when_all_else_is_denied(server):
    by_network = Sandbox.create(network={"allow_out": ["198.51.100.0/24"], "deny_out": ["0.0.0.0/0"]})
    by_name = Sandbox.create(network={"allow_out": [NAME], "deny_out": ["0.0.0.0/0"]})
    try:
        assert curl(by_network, f"http://{PUBLIC}/").startswith("hello")
        assert curl(by_network, "http://203.0.113.2/") is None
        assert curl(by_name, f"http://{NAME}/").startswith("hello")
        assert curl(by_name, f"http://{PUBLIC}/") is None
        assert curl(by_name, "-H", "Host: other.example.test", f"http://{PUBLIC}/") is None
        assert curl(by_name, f"http://{NAME}:8080/") is None, "names are known on ports 80 and 443 only"
    finally:
        by_network.kill()
        by_name.kill()


SINGLE_BYTES = f"""
import socket, time
def connected():
    client = socket.create_connection(("{PUBLIC}", 80))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client
client = connected()
for byte in b"GET / HTTP/1.1\\r\\nHost: {NAME}\\r\\nConnection: close\\r\\n\\r\\n":
    client.send(bytes([byte]))
print(client.makefile().readline().strip(), flush=True)
clients = [connected() for _ in range(50)]
end = time.monotonic() + 5
for client in clients: client.setblocking(False)
while time.monotonic() < end:
    for client in clients:
        try: client.send(b"a")
        except OSError: pass
print("sent")
"""


def test_a_request_that_arrives_byte_by_byte_is_read_and_does_not_stall_the_server(server):
    by_name = Sandbox.create(network={"allow_out": [NAME], "deny_out": ["0.0.0.0/0"]})
    by_name.files.write("/tmp/single.py", SINGLE_BYTES)
    sending = by_name.commands.run("python3 /tmp/single.py", background=True)
    for _ in range(10):
        with urllib.request.urlopen(server.url + "/health", timeout=10) as health:
            assert health.status == 200
        time.sleep(0.5)
    assert sending.wait().stdout == "HTTP/1.0 200 OK\nsent\n"
    by_name.kill()


def test_rules_are_changed_at_run_time(server, sandbox):
    assert curl(sandbox, f"http://{PUBLIC}/").startswith("hello")
    status, _, body = server.call("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", {"denyOut": [f"{PUBLIC}/32"]})
    assert status == 204, body
    assert curl(sandbox, f"http://{PUBLIC}/") is None
    assert server.call("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", {})[0] == 204
    assert curl(sandbox, f"http://{PUBLIC}/").startswith("hello")


@pytest.mark.skipif(ENGINE != "container", reason="root in a microVM has a network of its own to break")
def test_root_in_the_sandbox_cannot_change_its_network(sandbox):
    for attempt in ["ip route flush table local", "ip link set lo down", "ip link add name dummy0 type dummy", "ip addr add 10.0.0.1/8 dev lo"]:
        result = sandbox.commands.run(f"sudo {attempt} 2>&1; true").stdout
        assert "not permitted" in result, (attempt, result)
    assert sandbox.commands.run("ip -o link | wc -l").stdout == "1\n"


def test_other_protocols_are_blocked(sandbox):
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.connect(('%s', 443)); s.send(b'x'); s.recv(9)" % PUBLIC
    result = sandbox.commands.run(f'python3 -c "{code}" 2>&1 | tail -1').stdout
    assert "refused" in result.lower(), result


# Opens as many connections as it may, and holds those that are not reset.
GREEDY = f"""
import socket, sys, time
held = []
for _ in range(60):
    stream = socket.socket()
    stream.settimeout(0.2)
    try:
        stream.connect(({PUBLIC!r}, {ECHO}))
        stream.sendall(b"x")
        if stream.recv(1) == b"x":
            held.append(stream)
    except OSError:
        pass
print("holding", len(held), flush=True)
time.sleep(600)
"""


def test_greedy_sandboxes_leave_connections_to_others(world):
    total = 40
    server = Server("--dns", f"{RESOLVER}:53", "--max-connections", str(total))
    options = {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}
    sandboxes = [Sandbox.create(**options) for _ in range(3)]
    try:
        *greedy, modest = sandboxes
        for sandbox in greedy:
            sandbox.files.write("/tmp/greedy.py", GREEDY)
            handle = sandbox.commands.run("python3 /tmp/greedy.py", background=True)
            held = next(stdout for stdout, _, _ in handle if stdout)
            assert held.startswith("holding ") and 0 < int(held.split()[1]) <= total, held
        for _ in range(3):
            assert curl(modest, f"http://{PUBLIC}/").startswith("hello")
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
        server.stop()


ASK = """
import socket, struct, sys
name, kind, over_tcp = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tcp"
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
# With an option of the client's, and bytes after the message.
query = struct.pack("!6H", 77, 0x100, 1, 0, 0, 1) + labels + struct.pack("!BHH", 0, kind, 1)
query += struct.pack("!BHHIHHH", 0, 41, 4096, 0, 8, 65001, 4) + b"note" + b"more"
connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM)
connection.settimeout(5)
connection.connect(("192.0.2.53", 53))
if over_tcp:
    connection.sendall(struct.pack("!H", len(query)) + query)
    length, = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
    answer = connection.recv(length, socket.MSG_WAITALL)
else:
    connection.send(query)
    answer = connection.recv(4096)
number, flags, _, count = struct.unpack("!4H", answer[:8])
print(number, flags & 15, count, b"note" in answer)
"""


def test_dns_is_answered_by_the_same_rules_over_udp_and_tcp(server):
    """The code is 0 for an answer, 4 for a type that is not answered, and 5 for a name that is denied."""
    free = Sandbox.create()
    listed = Sandbox.create(network={"deny_out": ["0.0.0.0/0"], "allow_out": [NAME]})
    for sandbox in (free, listed):
        sandbox.files.write("ask.py", ASK)
        for protocol in ("udp", "tcp"):
            ask = lambda name, kind: sandbox.commands.run(f"python3 ask.py {name} {kind} {protocol}").stdout.split()
            assert ask(NAME, 1) == ["77", "0", "1", "False"]
            assert ask(NAME, 10)[:2] == ["77", "4"]
            other = ask("no-such-name.example.test", 1)
            assert other[1] == ("5" if sandbox is listed else "3"), other
        sandbox.kill()
