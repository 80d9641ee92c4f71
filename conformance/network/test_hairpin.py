"""Sandboxes reach public hosts of other sandboxes through their own server, with the checks that hold outside, and nothing else of it."""

import json

import pytest
from e2b import Sandbox

from fake_network import BOXES, HOST, RESOLVER
from server import Server
from services import serving

# Shows the headers of its requests.
ECHO_HEADERS = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def boxes(world):
    server = Server("--dns", f"{RESOLVER}:53", "--domain", BOXES)
    yield server
    server.stop()


def create(server, **options):
    return Sandbox.create(api_key=server.key, api_url=server.url, sandbox_url=server.url, **options)


def host_of(sandbox, port=8080):
    return f"{port}-{sandbox.sandbox_id}.{BOXES}"


@pytest.fixture(scope="module")
def target(boxes):
    sandbox = create(boxes)
    sandbox.files.write("/tmp/echo.py", ECHO_HEADERS)
    sandbox.commands.run("python3 /tmp/echo.py", background=True)
    sandbox.commands.run("until curl --silent localhost:8080 > /dev/null; do sleep 0.1; done")
    yield sandbox
    sandbox.kill()


@pytest.fixture
def visitor(boxes, target):
    sandbox = create(boxes)
    yield sandbox
    sandbox.kill()


def curl(sandbox, *words):
    words = " ".join(f"'{word}'" for word in words)
    return sandbox.commands.run(f"curl --silent --max-time 10 {words} || echo exit=$?").stdout


def status(sandbox, *words):
    return curl(sandbox, "--output", "/dev/null", "--write-out", "%{http_code}", *words)


def test_a_rule_is_applied_on_the_way_to_another_sandbox(boxes, target):
    """As E2B's own live test of rules does."""
    rules = {host_of(target): [{"transform": {"headers": {"X-Test-Token": "value"}}}]}
    sandbox = create(boxes, network={"rules": rules})
    try:
        seen = json.loads(curl(sandbox, f"https://{host_of(target)}/headers", "-H", "X-Test-Token: own"))
        assert [value for name, value in seen["headers"] if name == "X-Test-Token"] == ["value"]
        assert ["Host", host_of(target)] in seen["headers"] and seen["path"] == "/headers"
    finally:
        sandbox.kill()


def test_public_hosts_are_reached_by_https_and_http(target, visitor):
    for scheme in ["https", "http"]:
        seen = json.loads(curl(visitor, f"{scheme}://{host_of(target)}/x"))
        assert seen["path"] == "/x"
    assert status(visitor, f"https://{host_of(target, 9999)}/") == "502"


def test_private_ports_need_the_traffic_token_from_inside_as_well(boxes, visitor):
    private = create(boxes, network={"allow_public_traffic": False})
    try:
        serving(private, 8080)
        url = f"https://{host_of(private)}/"
        assert status(visitor, url) == "403"
        assert status(visitor, url, "-H", f"e2b-traffic-access-token: {private.traffic_access_token}") == "200"
    finally:
        private.kill()


def test_nothing_else_of_the_server_is_reached(boxes, target, visitor):
    host, token = host_of(target), boxes.admin_token
    for name in [f"api.{BOXES}", f"sandbox.{BOXES}", BOXES, "other.example.test", HOST]:
        for scheme, port in [("https", 443), ("http", 80)]:
            assert "exit=" in curl(visitor, "--insecure", "--resolve", f"{name}:{port}:{HOST}", f"{scheme}://{name}/health"), name
    # By way of a host that is reached.
    assert status(visitor, f"https://{host}/teams", "-H", f"Host: api.{BOXES}", "-H", f"X-Admin-Token: {token}") == "421"
    for forged in [f"api.{BOXES}", "localhost", f"sandbox.{BOXES}", "127.0.0.1"]:
        plain = curl(
            visitor, f"http://{host}/teams", f"http://{host}/teams", "-H", f"X-Admin-Token: {token}", "-H", f"Host: {forged}",
        )
        assert "exit=" in plain, "the first request of a connection names its host"
    pipelined = (
        f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n"
        f"GET /teams HTTP/1.1\\r\\nHost: api.{BOXES}\\r\\nX-Admin-Token: {token}\\r\\nConnection: close\\r\\n\\r\\n"
    )
    program = f"""python3 -c 'import socket; s = socket.create_connection(("{HOST}", 80)); s.sendall(b"{pipelined}".decode("unicode_escape").encode()); print(s.makefile().read())'"""
    answer = visitor.commands.run(program).stdout
    assert "this host cannot be reached from a sandbox" in answer and "teamID" not in answer
    headers = ["-H", f"E2b-Sandbox-Id: {target.sandbox_id}", "-H", "E2b-Sandbox-Port: 49983"]
    assert "path" in curl(visitor, f"https://{host}/", *headers), "the host wins over headers"
    # envd as from outside: not without its token, and not the control plane's own paths.
    assert status(visitor, f"https://{host_of(target, 49983)}/envs") == "401"
    assert status(visitor, f"https://{host_of(target, 49983)}/init", "-X", "POST") in ("403", "404")
    assert "exit=" in curl(visitor, f"https://{host_of(target)}:3000/")


def test_the_policy_holds_for_public_hosts(boxes, target):
    denied = create(boxes, allow_internet_access=False)
    allowed = create(boxes, network={"allow_out": [f"*.{BOXES}"], "deny_out": ["0.0.0.0/0"]})
    try:
        resolve = ["--resolve", f"{host_of(target)}:443:{HOST}"]
        assert "exit=" in curl(denied, *resolve, f"https://{host_of(target)}/")
        assert "path" in curl(allowed, f"https://{host_of(target)}/")
    finally:
        denied.kill()
        allowed.kill()


# Sends each request to its own public host again, as a proxy does: with the headers that came.
FORWARD = """
import http.server, sys, urllib.error, urllib.request
class Forward(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        headers = {}
        for name, value in self.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        try:
            with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers)) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            status = error.code
        with open("/tmp/requests", "a") as requests:
            requests.write("x")
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8080), Forward).serve_forever()
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_does_not_go_in_circles(boxes, scheme):
    sandbox = create(boxes)
    try:
        # The rule is one for the sandbox's own host.
        rules = {host_of(sandbox): [{"transform": {"headers": {"X-Api-Key": "k1"}}}]}
        sandbox.update_network({"rules": rules})
        sandbox.files.write("/tmp/forward.py", FORWARD)
        url = f"{scheme}://{host_of(sandbox)}/"
        sandbox.commands.run(f"python3 /tmp/forward.py {url}", background=True)
        sandbox.commands.run("until nc -z localhost 8080 2>/dev/null || (exec 3<>/dev/tcp/localhost/8080) 2>/dev/null; do sleep 0.1; done")
        assert status(sandbox, url) == "508"
        assert sandbox.files.read("/tmp/requests") == "x" * 15
    finally:
        sandbox.kill()
