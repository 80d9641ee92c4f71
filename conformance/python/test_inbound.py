"""Incoming traffic to servers in a sandbox: by headers, by host, websockets, streams, with and without tokens."""

import hashlib
import http.client
import json
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import Sandbox

import echo_server
from services import serve


@pytest.fixture(scope="module")
def site(server):
    sandbox = Sandbox.create()
    serve(sandbox, 8000)
    yield sandbox
    sandbox.kill()


def by_headers(sandbox, port=8000, **more):
    return {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)} | more


def by_host(sandbox, port=8000, domain="localhost", **more):
    return {"Host": f"{port}-{sandbox.sandbox_id}.{domain}"} | more


def connection(server):
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)


def get(server, path, headers):
    link = connection(server)
    try:
        link.request("GET", path, headers=headers)
        answer = link.getresponse()
        body = answer.read()
        kind = answer.getheader("Content-Type") or ""
        return answer.status, json.loads(body) if body.startswith(b"{") else (kind, body)
    finally:
        link.close()


def test_a_server_is_reached_by_header(server, site):
    status, seen = get(server, "/echo?a=1&b=%20%2F&a=2", by_headers(site, **{"X-Own": "value", "Cookie": "a=b"}))
    assert status == 200
    assert seen["path"] == "/echo?a=1&b=%20%2F&a=2", "the path arrives as it was written"
    assert seen["headers"]["x-own"] == "value" and seen["headers"]["cookie"] == "a=b"
    assert seen["headers"]["host"] == server.url.removeprefix("http://")


@pytest.mark.parametrize("domain", ["localhost", "localhost:3000", "e2b.app", "sandboxes.example.com"])
def test_a_server_is_reached_by_host_on_any_domain(server, site, domain):
    headers = by_host(site, domain=domain)
    status, seen = get(server, "/echo", headers)
    assert (status, seen["headers"]["host"]) == (200, headers["Host"])


@pytest.mark.skipif("COFFERDAM_OVER_TLS" in os.environ, reason="names another domain, without TLS")
def test_the_sdks_host_of_a_port_works(server, site):
    domain = "localhost:" + server.url.rsplit(":", 1)[1]
    host = Sandbox.connect(site.sandbox_id, domain=domain).get_host(8000)
    assert host == f"8000-{site.sandbox_id}.{domain}"
    assert get(server, "/echo", {"Host": host})[0] == 200


def test_a_sandbox_host_overrides_headers_and_a_shared_host_needs_them(server, site):
    assert get(server, "/echo", by_headers(site, port=1) | by_host(site))[0] == 200
    status, seen = get(server, "/echo", by_headers(site, Host="sandbox.example.com"))
    assert (status, seen["headers"]["host"]) == (200, f"8000-{site.sandbox_id}.example.com")
    assert get(server, "/echo", {"Host": "sandbox.example.com"})[0] == 400


def test_headers_do_not_reveal_the_client(server, site):
    claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "x", "X-Forwarded-Proto": "https", "Forwarded": "for=1.2.3.4"}
    _, seen = get(server, "/echo", by_headers(site, **claims))
    assert not [name for name in seen["headers"] if "forwarded" in name]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_server_is_reached_whatever_address_it_is_bound_to(server, sandbox, address):
    serve(sandbox, 5000, address)
    assert get(server, "/echo", by_headers(sandbox, 5000))[0] == 200


def test_a_port_is_reachable_once_something_listens(server, sandbox):
    assert get(server, "/echo", by_headers(sandbox, 9000))[0] == 502
    serve(sandbox, 9000)
    assert get(server, "/echo", by_headers(sandbox, 9000))[0] == 200


def test_one_connection_carries_requests_to_several_sandboxes(server, site):
    link = connection(server)
    for _ in range(20):
        link.request("GET", "/echo", headers=by_headers(site))
        assert json.loads(link.getresponse().read())["method"] == "GET"
        link.request("GET", "/health")
        assert link.getresponse().read() is not None
        link.request("GET", "/nothing", headers=by_host(site))
        answer = link.getresponse()
        assert (answer.status, json.loads(answer.read())) == (404, {"message": "nothing here"})
    link.close()


def test_events_arrive_when_they_are_sent(server, site):
    link = connection(server)
    link.request("GET", "/events", headers=by_headers(site))
    answer = link.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    for number in range(3):
        # The next event is sent only after this step, so it cannot have flushed this one.
        get(server, "/step", by_headers(site))
        assert answer.readline() == f"data: {number}\n".encode()
        assert answer.readline() == b"\n"
    assert answer.read() == b""
    link.close()


def test_100_mb_arrive_complete(server, site):
    link = connection(server)
    link.request("GET", "/big", headers=by_headers(site))
    answer = link.getresponse()
    expected, digest, size = hashlib.sha256(), hashlib.sha256(), 0
    for _ in range(100):
        expected.update(echo_server.BLOCK)
    while piece := answer.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    assert size == 100 << 20 and digest.digest() == expected.digest()
    link.close()


def test_a_chunked_upload_arrives_chunked_and_complete(server, site):
    pieces = [os.urandom(size) for size in [1, 10, 1000, 100_000, 5_000_000]]
    link = connection(server)
    link.request("POST", "/", iter(pieces), by_headers(site), encode_chunked=True)
    answer = link.getresponse()
    got = json.loads(answer.read())
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    assert (answer.status, got) == (201, {"size": 5_101_011, "digest": digest, "chunked": True})
    link.request("POST", "/", b"x" * 3_000_000, by_headers(site))
    got = json.loads(link.getresponse().read())
    assert (got["size"], got["chunked"]) == (3_000_000, False)
    link.close()


def test_an_upload_is_passed_on_as_it_arrives(server, sandbox):
    sandbox.files.write(
        "/tmp/first.py",
        "import socket\ns = socket.create_server(('127.0.0.1', 7000))\nprint('listening', flush=True)\n"
        "c, _ = s.accept()\nseen = b''\n"
        "while b'first' not in seen: seen += c.recv(4096)\nprint('first', flush=True)\n"
        "while b'last' not in seen: seen += c.recv(4096)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok')\n",
    )
    output = iter(sandbox.commands.run("python3 /tmp/first.py", background=True))
    assert next(output)[0] == "listening\n"

    def body():
        yield b"first"
        assert next(output)[0] == "first\n", "the first piece waits for the second"
        yield b"last"

    link = connection(server)
    link.request("POST", "/", body(), by_headers(sandbox, 7000), encode_chunked=True)
    assert link.getresponse().read() == b"ok"
    link.close()


def test_a_truncated_response_is_truncated_for_the_client(server, site):
    link = connection(server)
    link.request("GET", "/cut", headers=by_headers(site))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        link.getresponse().read()
    link.close()


def test_a_clients_disconnect_is_seen_inside(server, site):
    link = connection(server)
    link.request("GET", "/endless", headers=by_headers(site))
    assert link.getresponse().read(4) == b"tick"
    link.close()
    assert get(server, "/lost", by_headers(site)) == (200, {"lost": True})


class WebSocket:
    """A minimal websocket client."""

    def __init__(self, server, headers):
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.stream = self.socket.makefile("rb")
        lines = [
            "GET /socket HTTP/1.1", "Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.status = self.stream.readline().decode()
        self.headers = dict(http.client.parse_headers(self.stream))

    def send(self, opcode, payload):
        self.socket.sendall(echo_server.frame(opcode, payload, os.urandom(4)))

    def read(self):
        return echo_server.read_frame(self.stream)

    def close(self):
        self.stream.close()
        self.socket.close()


@pytest.mark.parametrize("route", [by_host, by_headers])
def test_a_websocket_carries_frames_both_ways(server, site, route):
    client = WebSocket(server, {"Host": "localhost"} | route(site))
    assert client.status.startswith("HTTP/1.1 101 ")
    assert {name.lower(): value for name, value in client.headers.items()}["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for size in [0, 1, 125, 126, 70_000, 2_000_000]:
        payload = os.urandom(size)
        client.send(2, payload)
        assert client.read() == (2, payload[::-1])
    client.send(8, struct.pack("!H", 1000))
    assert client.read() == (8, struct.pack("!H", 1000))
    assert client.stream.read() == b""
    client.close()


def test_a_websocket_is_cut_when_its_sandbox_is_killed(server):
    sandbox = Sandbox.create()
    serve(sandbox, 8000)
    client = WebSocket(server, by_host(sandbox))
    client.send(1, b"alive")
    assert client.read() == (1, b"evila")
    sandbox.kill()
    try:
        assert client.stream.read() == b""
    except ConnectionResetError:
        pass
    client.close()


def test_many_concurrent_requests_reach_one_server(server, site):
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: get(server, f"/echo?{n}", by_headers(site)), range(200)))
    assert [(status, seen["path"]) for status, seen in answers] == [(200, f"/echo?{n}") for n in range(200)]


def test_private_ports_open_only_with_the_traffic_token(server):
    sandbox = Sandbox.create(network={"allow_public_traffic": False})
    try:
        serve(sandbox, 8000)
        token = sandbox.traffic_access_token
        assert token
        for route in (by_headers, by_host):
            status, body = get(server, "/echo", route(sandbox))
            assert status == 403 and body["code"] == 403 and body["sandboxId"] == sandbox.sandbox_id
            for wrong in ["", "x", token[:-1], token + "0"]:
                assert get(server, "/echo", route(sandbox, **{"e2b-traffic-access-token": wrong}))[0] == 403
            assert get(server, "/echo", route(sandbox, **{"e2b-traffic-access-token": token}))[0] == 200
        assert WebSocket(server, by_host(sandbox)).status.startswith("HTTP/1.1 403 ")
        assert sandbox.commands.run("echo the agent needs none").exit_code == 0
    finally:
        sandbox.kill()


def test_a_token_opens_its_own_sandbox_only(server, site):
    private = Sandbox.create(network={"allow_public_traffic": False})
    other = Sandbox.create(network={"allow_public_traffic": False})
    try:
        serve(private, 8000)
        assert private.traffic_access_token != other.traffic_access_token
        wrong = by_headers(private, **{"e2b-traffic-access-token": other.traffic_access_token})
        assert get(server, "/echo", wrong)[0] == 403
    finally:
        private.kill()
        other.kill()


def test_a_masked_host_is_what_the_server_inside_sees(server):
    sandbox = Sandbox.create(network={"mask_request_host": "${PORT}-app.example.com"})
    try:
        serve(sandbox, 8000)
        headers = by_host(sandbox)
        _, seen = get(server, "/echo", headers)
        assert seen["headers"]["host"] == "8000-app.example.com"
        assert seen["headers"]["x-forwarded-host"] == headers["Host"]
    finally:
        sandbox.kill()
