"""HTTP/1.1 between clients and servers in sandboxes, byte by byte."""

import base64
import pathlib
import socket
import time

import pytest
from e2b import Sandbox

from services import started

SCRIPT = pathlib.Path(__file__).with_name("raw_server.py")
PORT = 8000


@pytest.fixture(scope="module")
def site(server):
    sandbox = Sandbox.create()
    sandbox.files.write("/tmp/raw_server.py", SCRIPT.read_text())
    started(sandbox.commands.run(f"exec python3 /tmp/raw_server.py {PORT}", background=True, timeout=0), "listening\n")
    yield sandbox
    sandbox.kill()


def send(server, request):
    """Sends bytes; returns the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    link = socket.create_connection((host, int(port)), timeout=30)
    link.sendall(request)
    return link


def receive(link):
    """All bytes until the end of the connection."""
    received = b""
    while data := link.recv(1 << 20):
        received += data
    link.close()
    return received


def target(response):
    return "/" + base64.urlsafe_b64encode(response.replace(b"\n", b"\r\n")).decode()


ECHO = b"HTTP/1.1 200 OK\nContent-Length: %SIZE%\n\n%SEEN%"


def exchange(server, site, method, response, *fields, body=b"", path=None):
    """Returns a response's head, its body, and the end of the connection after `Connection: close`."""
    lines = [f"{method} {path or target(response)} HTTP/1.1", f"Host: {PORT}-{site.sandbox_id}.localhost", *fields]
    if "Connection" not in " ".join(fields):
        lines.append("Connection: close")
    received = receive(send(server, "\r\n".join([*lines, "", ""]).encode() + body))
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode(), rest


def lines(request):
    return request.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]


def test_fields_arrive_in_their_spelling_and_number(server, site):
    fields = ["X-oDD: 1", "x-Odd: 2", "Accept: a/b", "Accept: c/d", "X-Empty:", 'X-Quoted: "a, b"', "under_score: 1"]
    head, rest = exchange(server, site, "GET", ECHO, *fields)
    arrived = lines(bytes.fromhex(rest.decode()))
    for field in fields:
        name, _, value = field.partition(":")
        assert f"{name}: {value.strip()}".rstrip() in arrived, arrived
    assert [line for line in arrived if line.lower().startswith("x-odd")] == ["X-oDD: 1", "x-Odd: 2"]
    assert f"Host: {PORT}-{site.sandbox_id}.localhost" in arrived


def test_fields_of_responses_keep_their_spelling_and_number(server, site):
    response = b"HTTP/1.1 299 Fine By Me\nSet-Cookie: a=1\nSet-Cookie: b=2\nX-oDD: 1\nContent-Length: 2\n\nok"
    head, rest = exchange(server, site, "GET", response)
    status, *fields = head.split("\r\n")
    assert status.startswith("HTTP/1.1 299") and rest == b"ok"
    assert [field for field in fields if field.startswith("Set-Cookie")] == ["Set-Cookie: a=1", "Set-Cookie: b=2"]
    assert "X-oDD: 1" in fields


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "DELETE", "TRACE", "PROPFIND", "PURGE", "M-SEARCH"])
def test_all_methods_are_passed_on(server, site, method):
    head, rest = exchange(server, site, method, ECHO, "Access-Control-Request-Method: GET", "Origin: https://a.b")
    assert head.startswith("HTTP/1.1 200") and bytes.fromhex(rest.decode()).startswith(f"{method} /".encode())


def test_a_response_to_head_has_the_length_and_no_body(server, site):
    head, rest = exchange(server, site, "HEAD", b"HTTP/1.1 200 OK\nContent-Length: 12345\nETag: \"a\"\n\n")
    assert "Content-Length: 12345" in head and 'ETag: "a"' in head and rest == b""


@pytest.mark.parametrize("status", [204, 304])
def test_responses_without_a_body_end_at_once(server, site, status):
    head, rest = exchange(server, site, "GET", b"HTTP/1.1 %d X\nX-Kept: 1\n\n" % status)
    assert head.startswith(f"HTTP/1.1 {status}") and "X-Kept: 1" in head and rest == b""


def test_ranges_are_the_servers(server, site):
    response = b"HTTP/1.1 206 Partial Content\nContent-Range: bytes 2-3/6\nContent-Length: 2\n\ncd"
    head, rest = exchange(server, site, "GET", response, "Range: bytes=2-3")
    assert head.startswith("HTTP/1.1 206") and "Content-Range: bytes 2-3/6" in head and rest == b"cd"


def test_trailers_pass_in_both_directions(server, site):
    response = b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n2\nok\n0\nX-Sum: 42\n\n"
    head, rest = exchange(server, site, "GET", response, "TE: trailers", "Connection: close, TE")
    assert "Trailer: X-Sum" in head and rest.lower().endswith(b"0\r\nx-sum: 42\r\n\r\n"), rest
    body = b"2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n"
    fields = ("Transfer-Encoding: chunked", "Trailer: X-Sum")
    head, rest = exchange(server, site, "POST", ECHO, *fields, body=body)
    arrived = bytes.fromhex(rest.decode())
    assert "Trailer: X-Sum" in lines(arrived) and arrived.lower().endswith(b"0\r\nx-sum: 42\r\n\r\n"), arrived


def test_a_client_that_waits_for_100_is_told_to_send(server, site):
    fields = f"Host: {PORT}-{site.sandbox_id}.localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n"
    link = send(server, f"POST {target(ECHO)} HTTP/1.1\r\n{fields}\r\n".encode())
    assert link.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    link.sendall(b"body")
    assert bytes.fromhex(receive(link).partition(b"\r\n\r\n")[2].decode()).endswith(b"\r\n\r\nbody")


def test_a_refused_upload_gets_its_response_however_much_is_sent(server, site):
    """Also by a client that pauses, so that the server has given up to wait for the rest, and reads only when it has sent everything."""
    body = b"x" * (8 << 20)
    head = f"POST /files?path=/tmp/x&signature=wrong HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {site.sandbox_id}\r\nE2b-Sandbox-Port: 49983\r\nContent-Length: {len(body)}\r\n\r\n"
    for pause in (0, 0.4):
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as link:
            link.sendall(head.encode())
            time.sleep(pause)
            link.sendall(body)
            answer = b""
            while piece := link.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 401"), answer[:200]


def test_bodies_without_a_length_end_with_the_connection(server, site):
    head, rest = exchange(server, site, "GET", b"HTTP/1.0 200 OK\n\nall of it")
    assert head.startswith("HTTP/1.1 200") and b"all of it" in rest


def test_absolute_targets_arrive_as_paths(server, site):
    path = f"http://{PORT}-{site.sandbox_id}.localhost{target(ECHO)}?a=%2F"
    head, rest = exchange(server, site, "GET", ECHO, path=path)
    assert bytes.fromhex(rest.decode()).startswith(f"GET {target(ECHO)}?a=%2F HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("authority", ["example.com:443", "{port}-{sandbox}.localhost:80", "localhost:22", "127.0.0.1:1"])
def test_connect_is_refused(server, site, authority):
    authority = authority.format(port=PORT, sandbox=site.sandbox_id)
    link = send(server, f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode())
    assert link.recv(1000).startswith(b"HTTP/1.1 405 ")
    link.close()


def test_any_protocol_may_follow_an_upgrade_and_sides_may_end_one_by_one(server, site):
    response = b"HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: own/1\nX-Own: yes\n\nfirst"
    fields = f"Host: {PORT}-{site.sandbox_id}.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: own/1\r\n"
    link = send(server, f"GET {target(response)} HTTP/1.1\r\n{fields}\r\n".encode())
    received = b""
    while not received.endswith(b"first"):
        received += link.recv(1000)
    head = received.decode().lower()
    assert head.startswith("http/1.1 101") and "upgrade: own/1" in head and "x-own: yes" in head
    link.sendall(b"hello")
    assert link.recv(5, socket.MSG_WAITALL) == b"HELLO"
    link.shutdown(socket.SHUT_WR)
    assert receive(link) == b"the end of what you sent"


def test_an_app_may_refuse_an_upgrade(server, site):
    response = b"HTTP/1.1 426 Upgrade Required\nUpgrade: own/2\nConnection: Upgrade, close\nContent-Length: 2\n\nno"
    head, rest = exchange(server, site, "GET", response, "Connection: Upgrade, close", "Upgrade: own/1")
    assert head.startswith("HTTP/1.1 426") and rest == b"no"
