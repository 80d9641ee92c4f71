"""Logs of a sandbox on both endpoints: processes and lifecycle events, for its team only, also after its end."""

import time

from e2b import Sandbox


def wait_for(server, path, found):
    deadline = time.monotonic() + 20
    while True:
        status, _, body = server.call("GET", path)
        assert status == 200, body
        lines = found(body)
        if lines:
            return lines
        assert time.monotonic() < deadline, body


def test_commands_and_life_are_logged_on_both_endpoints(server):
    sandbox = Sandbox.create()
    v1, v2 = f"/sandboxes/{sandbox.sandbox_id}/logs", f"/v2/sandboxes/{sandbox.sandbox_id}/logs"
    pid = sandbox.commands.run("echo findme; sleep 0", background=True).pid
    started = wait_for(server, v2, lambda body: [line for line in body["logs"] if "findme" in line["fields"].get("command", "")])
    assert started[0]["level"] == "info" and started[0]["message"] == "process started"
    assert started[0]["fields"]["pid"] == str(pid) and started[0]["fields"]["username"] == "user"
    ended = wait_for(server, v2 + "?search=ended", lambda body: body["logs"])
    assert ended[0]["fields"]["status"] == "exit status 0"

    raw = wait_for(server, v1, lambda body: body["logs"])
    times = [line["timestamp"] for line in raw]
    assert times == sorted(times)
    import json

    first = json.loads(raw[0]["line"])
    assert {"level", "logger", "message"} <= set(first)
    assert len(server.call("GET", v1 + "?limit=1")[2]["logEntries"]) == 1
    newest = server.call("GET", v2)[2]["logs"]
    assert newest[0]["timestamp"] >= newest[-1]["timestamp"], "the newest come first"
    assert not [line for line in server.call("GET", v2 + "?level=warn")[2]["logs"]]

    sandbox.kill()
    end = wait_for(server, v2 + "?search=sandbox%20ended", lambda body: body["logs"])
    assert end[0]["fields"]["reason"] == "request"
    assert server.call("GET", f"/v2/sandboxes/i{'0' * 20}/logs")[2] == {"logs": []}
    assert server.call("GET", v2 + "?direction=sideways")[0] == 400
    assert server.call("GET", v2 + "?limit=1001")[0] == 400


def test_a_sandbox_cannot_be_blocked_by_its_own_log(sandbox):
    handle = sandbox.commands.run("for i in $(seq 300); do /bin/true; done; echo done")
    assert handle.stdout == "done\n"
    for _ in range(50):
        sandbox.commands.run("true")
