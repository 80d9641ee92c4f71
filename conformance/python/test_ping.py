"""`ping`: a sandbox's own addresses answer echo requests, others do not, and one sandbox has few of the sockets for it."""

import pytest
from e2b import Sandbox
from server import Server
from services import started

# What `ping` does without capabilities: an echo request on a datagram socket. Prints whether it was answered, or the error's name.
PING = """
import errno, socket, sys
address, seconds = sys.argv[1:]
six = ":" in address
protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
try:
    link = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM, protocol)
    link.settimeout(float(seconds))
    link.sendto(bytes([128 if six else 8, 0, 0, 0, 0, 0, 0, 1]) + b"data", (address, 0))
    answer, peer = link.recvfrom(100)
    print("answered" if answer[-4:] == b"data" and peer[0] == address else answer)
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""
MANY = """
import errno, socket
def more():
    links = []
    try:
        while len(links) < 1000:
            links.append(socket.socket(socket.AF_INET6 if len(links) % 2 else socket.AF_INET, socket.SOCK_DGRAM,
                                       socket.IPPROTO_ICMPV6 if len(links) % 2 else socket.IPPROTO_ICMP))
    except OSError as error:
        return len(links), errno.errorcode[error.errno]
    return len(links), None
for _ in range(3): print(*more())
"""
HOLD = """
import socket, time
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) for _ in range(60)]
for one in held: one.bind(("127.0.0.1", 0))
print("held", flush=True)
time.sleep(1000)
"""
OWN = ["127.0.0.1", "169.254.0.21", "::1", "fd00:cf::2"]
OTHERS = ["8.8.8.8", "10.0.0.1", "169.254.0.22", "169.254.169.254"]
OTHERS6 = ["2001:db8::1", "fd00:cf::1"]


def ping(sandbox, address, user="user", seconds=20):
    return sandbox.commands.run(f"python3 /tmp/ping.py {address} {seconds}", user=user).stdout.strip()


def has_limit(sandbox, left=64):
    return sandbox.commands.run("python3 /tmp/many.py").stdout.split("\n")[:3] == [f"{left} EPERM"] * 3


@pytest.fixture(scope="module")
def pinging(server):
    with Sandbox.create() as sandbox:
        prepare(sandbox)
        yield sandbox


def prepare(sandbox):
    sandbox.files.write("/tmp/ping.py", PING)
    sandbox.files.write("/tmp/many.py", MANY)


@pytest.mark.container
@pytest.mark.parametrize("user", ["user", "root"])
def test_only_a_sandboxes_own_addresses_answer_pings(pinging, user):
    assert {address: ping(pinging, address, user) for address in OWN} == dict.fromkeys(OWN, "answered")
    assert {address: ping(pinging, address, user) for address in OTHERS} == dict.fromkeys(OTHERS, "EPERM")
    # The kernel drops these without an error.
    assert {address: ping(pinging, address, user, 0.3) for address in OTHERS6} == dict.fromkeys(OTHERS6, "timed out")


@pytest.mark.container
def test_a_sandbox_has_few_echo_sockets(pinging):
    """The kernel keeps those of the whole host in one small table, behind one lock."""
    assert has_limit(pinging), "refused at the limit, and given back when they are closed"


@pytest.mark.container
def test_pings_work_after_a_restore(cold_server, cold):
    with Sandbox.create(**cold) as sandbox:
        prepare(sandbox)
        sandbox.files.write("/tmp/hold.py", HOLD)
        holder = started(sandbox.commands.run("exec python3 /tmp/hold.py", background=True, timeout=0), "held")
        assert has_limit(sandbox, left=4)
        assert sandbox.pause() is True
        sandbox.connect()
        assert has_limit(sandbox, left=4), "restored sockets count"
        assert sandbox.commands.kill(holder.pid)
        sandbox.commands.run(f"while [ -e /proc/{holder.pid} ]; do sleep 0.01; done", timeout=20)
        assert (ping(sandbox, "127.0.0.1"), ping(sandbox, "8.8.8.8")) == ("answered", "EPERM")
        assert has_limit(sandbox)


@pytest.mark.container
def test_pings_work_in_an_adopted_sandbox():
    server = Server()
    try:
        sandbox = Sandbox.create(api_key=server.key, api_url=server.url, sandbox_url=server.url)
        prepare(sandbox)
        server.crash()
        server.restart()
        assert (ping(sandbox, "127.0.0.1"), ping(sandbox, "8.8.8.8")) == ("answered", "EPERM")
        assert has_limit(sandbox)
        sandbox.kill()
    finally:
        server.stop()
