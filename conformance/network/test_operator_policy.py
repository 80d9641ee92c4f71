"""What the operator permits of connections out of sandboxes, above the sandboxes' own rules, and the log of those connections."""

import json
import time

import pytest
from e2b import Sandbox

from fake_network import ECHO, NAME, PROXY, PROXY_PASSWORD, PROXY_USER, PUBLIC, PUBLIC6, RESOLVER
from secure_web import DOMAIN
from server import Server

API = f"api.{DOMAIN}"
NEIGHBOUR = "203.0.113.2"
PUBLIC_PROXY = {"address": f"proxy.{DOMAIN}:{PROXY}", "username": PROXY_USER, "password": PROXY_PASSWORD}
RULES = {API: [{"transform": {"headers": {"X-Api-Key": "k1"}}}]}


def started(world, *flags):
    return Server("--dns", f"{RESOLVER}:53", "--egress-ca", str(world.authority), *flags)


def create(server, **arguments):
    return Sandbox.create(api_key=server.key, api_url=server.url, sandbox_url=server.url, **arguments)


def curl(sandbox, *words):
    """The response's body, or None when nothing was reached."""
    words = " ".join(f"'{word}'" for word in words)
    output = sandbox.commands.run(f"curl --silent --insecure --max-time 20 {words} || echo exit=$?").stdout
    return None if "exit=" in output else output


def egress(server, sandbox):
    status, _, body = server.call("GET", f"/sandboxes/{sandbox.sandbox_id}/egress")
    assert status == 200
    return body["connections"]


@pytest.fixture(scope="module")
def denying(world):
    server = started(world, "--egress-deny", f"{NEIGHBOUR}/32", "--egress-deny", f"*.{DOMAIN}")
    yield server
    server.stop()


def test_what_the_operator_denies_no_rule_permits(world, denying):
    sandbox = create(denying, network={"allow_out": [f"{NEIGHBOUR}/32", API], "deny_out": ["0.0.0.0/0"], "rules": RULES})
    try:
        assert curl(sandbox, f"http://{NEIGHBOUR}/") is None
        assert curl(sandbox, f"https://{API}/") is None
        # The name is denied at any address, and is not resolved.
        assert curl(sandbox, "--resolve", f"{API}:443:{PUBLIC}", f"https://{API}/") is None
        assert sandbox.commands.run(f"getent hosts {API} || echo none").stdout == "none\n"
        sandbox.update_network({})
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        assert curl(sandbox, f"http://{NEIGHBOUR}/") is None
        assert curl(sandbox, "-H", f"Host: {API}", f"http://{PUBLIC}/") is None
        assert {entry["reason"] for entry in egress(denying, sandbox) if entry["verdict"] == "refused"} == {
            "denied by the operator",
        }
    finally:
        sandbox.kill()


def test_a_proxy_leads_to_nothing_that_the_operator_denies(world, denying):
    """The proxy resolves names, so it is given addresses that were checked."""
    proxy = {**PUBLIC_PROXY, "address": f"{PUBLIC}:{PROXY}"}
    sandbox = create(denying, network={"egress_proxy": proxy})
    try:
        before = len(world.proxied())
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        assert world.proxied()[before:] == [f"{PUBLIC}:80"]
        assert curl(sandbox, f"http://{NEIGHBOUR}/") is None
        # The proxy's own name is denied.
        sandbox.update_network({"egress_proxy": PUBLIC_PROXY})
        assert curl(sandbox, f"http://{NAME}/") is None
        assert len(world.proxied()) == before + 1
    finally:
        sandbox.kill()


def test_outside_of_the_operators_list_there_is_nothing(world):
    server = started(world, "--egress-allow-only", NAME, "--egress-allow-only", f"{PUBLIC6}/128")
    try:
        sandbox = create(server)
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        assert curl(sandbox, f"http://[{PUBLIC6}]/").startswith("hello")
        assert curl(sandbox, f"http://{PUBLIC}/") is None, "the address of an allowed name is not allowed"
        # The name leads to its own address, whatever the sandbox believes.
        assert curl(sandbox, "--resolve", f"{NAME}:80:{NEIGHBOUR}", f"http://{NAME}/").startswith(f"hello from ::ffff:{PUBLIC}")
        assert sandbox.commands.run(f"getent hosts {API} || echo none").stdout == "none\n"
        sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": [API]})
        assert curl(sandbox, f"http://{NAME}/") is None and curl(sandbox, f"https://{API}/") is None
        sandbox.kill()
    finally:
        server.stop()


def test_a_teams_lists_hold_for_its_running_sandboxes_alone(world):
    server = started(world, "--egress-deny", "192.0.2.0/24")
    try:
        [team] = json.loads(server.cli("team", "list", "--json"))
        other = server.cli("team", "create", "other", "--egress-allow-only", "*.example.org").strip()
        sandbox = create(server)
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        server.cli("team", "update", team["teamID"], "--egress-deny", f"{PUBLIC}, Bad.example.test")
        assert curl(sandbox, f"http://{NAME}/") is None
        shown = server.cli("team", "show", team["teamID"])
        assert f"{PUBLIC}/32, bad.example.test" in shown and "192.0.2.0/24" in shown
        shown = json.loads(server.cli("team", "show", other, "--json"))
        assert shown["egress"] == {"deny": [], "allowOnly": ["*.example.org"]}
        server.cli("team", "update", team["teamID"], "--egress-deny", "none")
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        status, _, error = server.call(
            "PATCH", f"/admin/teams/{team['teamID']}", {"egress": {"deny": ["http://x.org/"]}}, headers={"X-Admin-Token": server.admin_token}
        )
        assert status == 400 and "http://x.org/" in error["message"]
        sandbox.kill()
    finally:
        server.stop()


def test_limits_of_connections_and_traffic(world):
    server = started(world, "--egress-connections", "3", "--egress-traffic", "4")
    try:
        sandbox = create(server)
        program = f"""
import socket, threading
clients = [socket.create_connection(("{PUBLIC}", {ECHO})) for _ in range(4)]
for client in clients[:3]:
    client.sendall(b"x"); client.recv(1)
clients[3].settimeout(2)
clients[3].sendall(b"x")
try: print("fourth", clients[3].recv(1))
except TimeoutError: print("fourth waits")
clients[0].close()
clients[3].settimeout(20)
print("then", clients[3].recv(1))
received = 0
threading.Thread(target=lambda: [clients[1].sendall(b"x" * 65536) for _ in range(200)], daemon=True).start()
try:
    while data := clients[1].recv(65536): received += len(data)
except ConnectionError: pass
print("received", 0 < received <= 4 << 20)
"""
        sandbox.files.write("/tmp/limits.py", program)
        assert sandbox.commands.run("python3 /tmp/limits.py").stdout.splitlines() == [
            "fourth waits", "then b'x'", "received True",
        ]
        assert curl(sandbox, f"http://{NAME}/") is None
        reasons = {entry["reason"] for entry in egress(server, sandbox)}
        assert "the sandbox's limit of bytes is reached" in reasons
        # It is a limit of one run.
        sandbox.pause()
        sandbox = Sandbox.connect(sandbox.sandbox_id, api_key=server.key, api_url=server.url, sandbox_url=server.url)
        assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        sandbox.kill()
    finally:
        server.stop()


def test_the_log_tells_who_where_verdict_and_bytes(world, server):
    sandbox = create(server, network={"rules": RULES, "deny_out": [f"{NEIGHBOUR}/32"]})
    try:
        for _ in range(3):
            assert curl(sandbox, f"http://{NAME}/").startswith("hello")
        assert curl(sandbox, f"http://{NEIGHBOUR}/") is None
        assert curl(sandbox, f"http://{PUBLIC}:1/") is None
        assert json.loads(curl(sandbox, f"https://{API}/"))
        sandbox.commands.run("true")
        seen = {}
        end = time.monotonic() + 20
        # The interceptor keeps its connection to the host for further requests for some seconds.
        while len(seen) < 4 and time.monotonic() < end:
            for entry in egress(server, sandbox):
                seen[entry["host"] or entry["address"], entry["port"]] = entry
            time.sleep(0.2)
        plain = seen[PUBLIC, 80]
        assert plain["verdict"] == "connected" and plain["receivedBytes"] > plain["sentBytes"] > 0
        refused = seen[NEIGHBOUR, 80]
        assert refused["verdict"] == "refused" and refused["reason"] == "denied by a rule of the sandbox"
        assert seen[PUBLIC, 1]["verdict"] == "failed" and "refused" in seen[PUBLIC, 1]["reason"]
        intercepted = seen[API, 443]
        assert intercepted["verdict"] == "connected" and intercepted["address"] == PUBLIC
        shown = server.cli("sandbox", "egress", sandbox.sandbox_id)
        assert API in shown and "refused: denied by a rule of the sandbox" in shown
    finally:
        sandbox.kill()
    assert egress(server, sandbox), "the log outlives the sandbox"
    assert server.call("GET", f"/sandboxes/{sandbox.sandbox_id}/egress?limit=1")[2]["connections"][1:] == []
