"""Bad requests get the contract's status and JSON body, and do no harm."""

import contextlib
import json
import socket

import pytest
from e2b import AuthenticationException, Sandbox
from e2b.exceptions import SandboxException


def refused(answer, status):
    code, headers, body = answer
    assert code == status, body
    assert headers["content-type"].startswith("application/json")
    assert body["code"] == status and isinstance(body["message"], str) and body["message"]
    return body["message"]


def test_unknown_template(server):
    message = refused(server.call("POST", "/v2/sandboxes", {"templateID": "nonsense"}), 404)
    assert message == "template 'nonsense' not found"
    with pytest.raises(SandboxException, match="template 'nonsense' not found"):
        Sandbox.create("nonsense")


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b'{"templateID": 5}', b'{"timeout": 5}', b"\xff\xfe"])
def test_malformed_json(server, body):
    refused(server.call("POST", "/v2/sandboxes", body), 400)
    refused(server.call("POST", "/sandboxes", body), 400)


@pytest.mark.parametrize("timeout", [0, -1, 1e12, "soon"])
def test_impossible_timeouts(server, timeout):
    refused(server.call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": timeout}), 400)


def test_wrong_api_keys(server):
    assert "authorization header is missing" in refused(server.call("GET", "/v2/sandboxes", headers={"X-API-Key": ""}), 401)
    for key in ["e2b_" + "0" * 40, "e2b_xyz", "sk_nothing", "e2b_"]:
        refused(server.call("GET", "/v2/sandboxes", headers={"X-API-Key": key}), 401)
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_unknown_and_malformed_sandboxes(server):
    gone = "i" + "0" * 20
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/timeout"), ("POST", "/connect")]:
        refused(server.call(method, f"/sandboxes/{gone}{path}", {"timeout": 60} if method == "POST" else None), 404)
    refused(server.call("POST", f"/v2/sandboxes/{gone}/connect", {}), 404)
    for bad in ["UPPER", "a-b-c", "..%2F..%2Fetc", "%00"]:
        code, _, body = server.call("GET", f"/sandboxes/{bad}")
        assert code in (400, 404) and body["code"] == code


def test_unknown_paths_methods_and_oversize_bodies(server):
    refused(server.call("GET", "/no/such/path"), 404)
    refused(server.call("PUT", "/v2/sandboxes", {}), 405)
    refused(server.call("POST", "/v2/sandboxes", b'{"templateID":"' + b"x" * (17 << 20) + b'"}'), 413)


def test_traffic_to_an_unknown_sandbox(server):
    gone = "i" + "0" * 20
    code, _, body = server.call("GET", "/", headers={"E2b-Sandbox-Id": gone, "E2b-Sandbox-Port": "3000"})
    assert (code, body) == (502, {"sandboxId": gone, "message": "The sandbox was not found", "code": 502})


def test_closed_port_and_reserved_paths(server, sandbox):
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "3000"}
    code, _, body = server.call("GET", "/", headers=route)
    assert code == 502 and body["message"] == "The sandbox is running but port is not open" and body["port"] == 3000
    for path in ["/init", "/%69nit", "//init", "/x/../init", "/freeze"]:
        code, _, body = server.call("POST", path, {}, route | {"E2b-Sandbox-Port": "49983"})
        assert code == 404, (path, body)


def test_envd_refuses_a_wrong_token(server, sandbox):
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    for token in [{}, {"X-Access-Token": "0" * 64}]:
        code, _, body = server.call("POST", "/process.Process/List", {}, route | token)
        assert code == 401 and body["code"] == 401


def test_a_client_that_sends_no_http_does_no_harm(server, sandbox):
    host, port = server.url.removeprefix("http://").split(":")
    for garbage in [b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"\x16\x03\x01"]:
        with socket.create_connection((host, int(port))) as connection:
            # The server may close the connection before it has read everything.
            with contextlib.suppress(OSError):
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
    assert json.loads(json.dumps(sandbox.is_running())) is True
