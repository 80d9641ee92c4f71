"""Metrics over time, events, webhooks, teams, keys and limits: through the SDK where it has a call, plain HTTP otherwise."""

import base64
import datetime
import hashlib
import http.server
import json
import queue
import threading
import time

import pytest
from e2b import AuthenticationException, RateLimitException, Sandbox
from e2b.exceptions import SandboxException

from server import ENGINE, Server


@pytest.fixture(scope="module")
def own():
    """A server of the module's own, which tests limit and crash, and which may send webhooks to this host."""
    server = Server("--webhook-allow-internal", "127.0.0.0/8")
    yield server
    server.stop()


def options(server, key=None):
    return {"api_key": key or server.key, "api_url": server.url, "sandbox_url": server.url}


def wait_for(look):
    deadline = time.monotonic() + 30
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "it never came"


def admin(server, method, path, body=None, status=200):
    answered, _, answer = server.call(method, path, body, {"X-Admin-Token": server.admin_token, "X-API-Key": ""})
    assert answered == status, answer
    return answer


def new_team(server, name, **limits):
    team = admin(server, "POST", "/admin/teams", {"name": name, "limits": limits}, 201)
    key = admin(server, "POST", f"/admin/teams/{team['teamID']}/api-keys", {"name": "tests"}, 201)
    return team, key["key"]


def test_the_history_of_metrics_survives_sandbox_and_server(own):
    begin = datetime.datetime.now(datetime.timezone.utc)
    sandbox = Sandbox.create(**options(own))
    sandbox.commands.run("head -c 8M /dev/urandom > /tmp/file; sync; for i in $(seq 200000); do :; done")
    first = wait_for(sandbox.get_metrics)
    assert first[0].mem_total == 1024 << 20 and first[0].cpu_count == 2 and first[0].disk_total > 0
    if ENGINE == "container":
        assert first[0].disk_total == own.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]["diskSizeMB"] << 20, "the limit, not the host's disk"
        assert wait_for(lambda: 8 << 20 <= sandbox.get_metrics()[-1].disk_used < 100 << 20)
    many = wait_for(lambda: len(sandbox.get_metrics()) >= 3 and sandbox.get_metrics())
    times = [sample.timestamp.timestamp() for sample in many]
    assert times == sorted(times)
    assert all(3 <= later - sooner <= 8 for sooner, later in zip(times, times[1:])), times
    assert times[0] - begin.timestamp() < 30
    assert max(sample.cpu_used_pct for sample in many) > 0 and all(0 <= s.cpu_used_pct <= 110 for s in many)

    early = begin - datetime.timedelta(hours=1)
    assert sandbox.get_metrics(start=early, end=early + datetime.timedelta(minutes=1)) == []
    some = sandbox.get_metrics(start=begin, end=begin + datetime.timedelta(minutes=5))
    assert len(some) >= len(many)
    path = f"/sandboxes/{sandbox.sandbox_id}/metrics"
    status, _, body = own.call("GET", path + "?start=2&end=1")
    assert (status, body["message"]) == (400, "Invalid time range for metrics")
    _, _, latest = own.call("GET", f"/sandboxes/metrics?sandbox_ids={sandbox.sandbox_id},inone")
    assert list(latest["sandboxes"]) == [sandbox.sandbox_id]

    sandbox.kill()
    own.crash()
    own.restart()
    after = own.call("GET", path)[2]
    assert [sample["timestampUnix"] for sample in after][:3] == [int(at) for at in times][:3]
    assert own.call("GET", f"/sandboxes/i{'0' * 20}/metrics")[2] == []


def test_teams_see_their_metrics(own):
    team, key = new_team(own, "figures")
    for _ in range(2):
        Sandbox.create(**options(own, key)).kill()
    headers = {"X-API-Key": key}
    path = f"/teams/{team['teamID']}/metrics"
    status, _, series = own.call("GET", path, headers=headers)
    assert status == 200 and max(step["concurrentSandboxes"] for step in series) == 1
    assert any(step["sandboxStartRate"] > 0 for step in series)
    status, _, most = own.call("GET", path + "/max?metric=concurrent_sandboxes", headers=headers)
    assert (status, most["value"]) == (200, 1)
    status, _, body = own.call("GET", path + "?start=2&end=1", headers=headers)
    assert (status, body["message"]) == (400, "start time cannot be after end time")
    assert own.call("GET", path)[0] == 403


def test_events_describe_a_sandboxs_life_and_survive_a_crash(own):
    sandbox = Sandbox.create(metadata={"app": "x"}, **options(own))
    sandbox.set_timeout(60)
    expired = Sandbox.create(**options(own))
    expired.set_timeout(0)
    sandbox.kill()
    own.crash()
    own.restart()
    _, _, events = own.call("GET", f"/events/sandboxes/{sandbox.sandbox_id}")
    assert [event["type"] for event in events] == [
        f"sandbox.lifecycle.{kind}" for kind in ("killed", "updated", "created")
    ]
    killed, updated, created = (event["eventData"] for event in events)
    assert created["sandbox_metadata"] == {"app": "x"}
    assert updated["set_timeout"].endswith("Z")
    assert killed["kill_reason"] == "request" and killed["execution"]["vcpu_count"] == 2
    _, _, events = own.call("GET", f"/events/sandboxes/{expired.sandbox_id}?types=sandbox.lifecycle.killed")
    assert [event["eventData"]["kill_reason"] for event in events] == ["timeout"]
    oldest = own.call("GET", "/events/sandboxes?orderAsc=true&limit=1")[2]
    second = own.call("GET", "/events/sandboxes?orderAsc=true&limit=1&offset=1")[2]
    assert oldest[0]["timestamp"] <= second[0]["timestamp"] and oldest[0]["id"] != second[0]["id"]
    assert own.call("GET", "/events/sandboxes?types=nonsense")[0] == 400


class Receiver:
    """A web server that receives webhooks and fails the first ones."""

    def __init__(self, failures):
        self.posts, failing = queue.Queue(), iter([500] * failures)
        posts = self.posts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                posts.put((dict(self.headers), body))
                self.send_response(next(failing, 200))
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def next(self):
        headers, body = self.posts.get(timeout=60)
        return {name.lower(): value for name, value in headers.items()}, body


def test_webhooks_are_signed_and_retried(own):
    receiver = Receiver(failures=1)
    hook = {"name": "h", "url": receiver.url, "events": ["sandbox.lifecycle.created"], "signatureSecret": "s3cret"}
    status, _, made = own.call("POST", "/events/webhooks", hook)
    assert status == 201 and "signatureSecret" not in made
    sandbox = Sandbox.create(metadata={"n": "1"}, **options(own))
    sandbox.kill()
    first, body = receiver.next()
    again, same = receiver.next()
    assert body == same and first["e2b-delivery-id"] != again["e2b-delivery-id"]
    expected = base64.b64encode(hashlib.sha256(b"s3cret" + body).digest()).decode().rstrip("=")
    assert again["e2b-signature"] == expected
    assert again["e2b-webhook-id"] == made["id"] and again["e2b-signature-version"] == "v1"
    event = json.loads(body)
    assert event["type"] == "sandbox.lifecycle.created" and event["sandbox_id"] == sandbox.sandbox_id
    assert event["event_data"]["sandbox_metadata"] == {"n": "1"}
    assert receiver.posts.empty(), "the kill was not asked for"

    path = f"/events/webhooks/{made['id']}"
    status, _, changed = own.call("PATCH", path, {"enabled": False})
    assert (status, changed["enabled"]) == (200, False)
    assert own.call("DELETE", path)[0] == 200
    assert own.call("GET", path)[0] == 404
    receiver.server.shutdown()


def test_webhooks_reach_no_internal_address_unless_allowed(server):
    for url in ("http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "ftp://example.com"):
        hook = {"name": "h", "url": url, "events": ["sandbox.lifecycle.created"], "signatureSecret": "s"}
        assert server.call("POST", "/events/webhooks", hook)[0] == 400, url


def test_keys_are_valid_until_deleted_and_teams_until_stopped(own):
    team, key = new_team(own, "stopped")
    sandbox = Sandbox.create(**options(own, key))
    with pytest.raises(Exception):
        Sandbox.get_info(sandbox.sandbox_id, **options(own))
    listed = admin(own, "GET", f"/admin/teams/{team['teamID']}/api-keys")
    assert listed[0]["mask"]["maskedValueSuffix"] == key[-4:] and "key" not in listed[0]
    path = f"/admin/teams/{team['teamID']}"
    admin(own, "PATCH", path, {"blocked": True, "blockedReason": "unpaid"})
    with pytest.raises(SandboxException, match="team is blocked: unpaid"):
        Sandbox.create(**options(own, key))
    assert Sandbox.get_info(sandbox.sandbox_id, **options(own, key)).sandbox_id == sandbox.sandbox_id
    admin(own, "PATCH", path, {"banned": True})
    with pytest.raises(SandboxException, match="team is banned"):
        Sandbox.get_info(sandbox.sandbox_id, **options(own, key))
    assert admin(own, "GET", "/admin/sandboxes/running-counts")[team["teamID"]] == 1
    assert admin(own, "POST", path + "/sandboxes/kill") == {"killedCount": 1, "failedCount": 0}
    admin(own, "DELETE", f"{path}/api-keys/{listed[0]['id']}", status=204)
    with pytest.raises(AuthenticationException):
        Sandbox.create(**options(own, key))


def test_access_tokens_as_the_cli_uses_them(own):
    user = admin(own, "POST", "/admin/users", {"email": "ann@example.com"}, 201)
    team, _ = new_team(own, "people")
    admin(own, "PUT", f"/admin/teams/{team['teamID']}/members/{user['id']}", status=204)
    token = admin(own, "POST", "/access-tokens", {"name": "laptop", "userID": user["id"]}, 201)
    bearer = {"X-API-Key": "", "Authorization": f"Bearer {token['token']}"}
    status, _, teams = own.call("GET", "/teams", headers=bearer)
    assert status == 200 and teams[0]["teamID"] == team["teamID"] and teams[0]["isDefault"]
    Sandbox.create(**options(own, teams[0]["apiKey"])).kill()
    assert own.call("DELETE", f"/access-tokens/{token['id']}", headers=bearer)[0] == 204
    assert own.call("GET", "/teams", headers=bearer)[0] == 401


def test_the_node_describes_this_host(own):
    nodes = admin(own, "GET", "/nodes")
    assert len(nodes) == 1 and nodes[0]["status"] == "ready" and nodes[0]["createSuccesses"] > 0
    assert nodes[0]["metrics"]["memoryTotalBytes"] > nodes[0]["metrics"]["memoryUsedBytes"] > 0
    assert nodes[0]["metrics"]["disks"][0]["totalBytes"] > 0
    path = f"/nodes/{nodes[0]['id']}"
    admin(own, "POST", path, {"status": "draining"}, 204)
    with pytest.raises(Exception, match="draining"):
        Sandbox.create(**options(own), retries=0)
    admin(own, "POST", path, {"status": "ready"}, 204)


def test_limits_raise_the_sdks_exceptions(own):
    team, key = new_team(own, "limited", concurrentSandboxes=1, maxLengthHours=1)
    sandbox = Sandbox.create(**options(own, key))
    with pytest.raises(RateLimitException, match="maximum number of concurrent sandboxes"):
        Sandbox.create(**options(own, key))
    sandbox.kill()
    with pytest.raises(SandboxException, match="Timeout cannot be greater than 1 hours"):
        Sandbox.create(timeout=3601, **options(own, key))
    admin(own, "PATCH", f"/admin/teams/{team['teamID']}", {"limits": {"maxVCPU": 1}})
    with pytest.raises(SandboxException, match="CPU count can't be higher than 1"):
        Sandbox.create(**options(own, key))


def test_the_sdk_waits_at_a_rate_limit():
    server = Server("--rate-limit", "GET /sandboxes/{sandboxID}=1/s")
    try:
        sandbox = Sandbox.create(**options(server))
        path = f"/sandboxes/{sandbox.sandbox_id}"
        status, headers, _ = server.call("GET", path)
        assert (status, headers["RateLimit-Limit"], headers["RateLimit-Remaining"]) == (200, "1", "0")
        status, headers, body = server.call("GET", path)
        assert (status, body["message"], headers["Retry-After"]) == (429, "Rate limit exceeded", "1")
        assert headers["Should-Retry"] == "true" and int(headers["RateLimit-Reset"]) >= 1
        begin = time.monotonic()
        for _ in range(2):
            assert Sandbox.get_info(sandbox.sandbox_id, **options(server)).sandbox_id == sandbox.sandbox_id
        assert time.monotonic() - begin > 0.9, "the SDK comes back when it is told to"
    finally:
        server.stop()
