"""Older ways to build a template: a Dockerfile as text that the server parses, the first call of the second version of the API, and SDKs
from before the default user. No current client calls these, so the tests use plain HTTP.
"""

import time
import uuid

import pytest
from conftest import options_of
from e2b import Sandbox
from server import Server

LEGACY = {
    "templateID", "buildID", "cpuCount", "memoryMB", "diskSizeMB", "public", "createdAt", "updatedAt", "createdBy",
    "lastSpawnedAt", "spawnCount", "buildCount", "envdVersion", "aliases",
}


def fresh(what="old"):
    return f"{what}-{uuid.uuid4().hex[:8]}"


def finished(server, asked):
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}/status"
    while (report := server.call("GET", path)[2])["status"] in ("waiting", "building"):
        time.sleep(0.05)
    return report


def start(server, asked):
    return server.call("POST", f"/templates/{asked['templateID']}/builds/{asked['buildID']}")


def test_a_dockerfile_is_read_by_the_server(server):
    name = fresh()
    dockerfile = "FROM e2bdev/base\nENV TOWN=Bergen\nRUN echo $TOWN > /town\nCOPY <<EOF /note\nheld in the Dockerfile\nEOF\nWORKDIR /srv\n"
    body = {"alias": name, "dockerfile": dockerfile, "cpuCount": 2, "memoryMB": 512, "startCmd": "sleep 12345", "readyCmd": "pgrep -f 'sleep 12345'"}
    status, _, asked = server.call("POST", "/templates", body)
    assert status == 202 and LEGACY <= set(asked), asked
    assert (asked["aliases"], asked["cpuCount"], asked["memoryMB"], asked["buildCount"], asked["createdBy"]) == ([name], 2, 512, 1, None)
    # The request's settings are kept.
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    assert server.call("GET", f"{path}/status")[2]["status"] == "waiting"
    assert start(server, asked)[0] == 202
    report = finished(server, asked)
    assert report["status"] == "ready", report
    assert any("RUN echo $TOWN > /town" in line for line in report["logs"]), report["logs"]
    with Sandbox.create(name) as sandbox:
        said = sandbox.commands.run("cat /town /note; pwd; echo $TOWN; pgrep -cf '^sleep 12345'").stdout
        assert said == "Bergen\nheld in the Dockerfile\n/srv\nBergen\n1\n"
    status, _, again = start(server, asked)
    assert status == 400 and "is started already" in again["message"], again

    status, _, second = server.call("POST", f"/templates/{asked['templateID']}", {"alias": name, "dockerfile": "FROM e2bdev/base\nRUN echo 2 > /town\n"})
    assert status == 202 and second["templateID"] == asked["templateID"] and second["buildID"] != asked["buildID"], second
    assert second["buildCount"] == 2 and second["aliases"] == [name]
    assert start(server, second)[0] == 202 and finished(server, second)["status"] == "ready"
    with Sandbox.create(name) as sandbox:
        assert sandbox.files.read("/town") == "2\n"


def test_a_template_may_have_no_name(server):
    status, _, asked = server.call("POST", "/templates", {"dockerfile": "FROM e2bdev/base\nUSER root\nRUN echo nameless > /who\n"})
    assert status == 202 and asked["aliases"] == [], asked
    assert start(server, asked)[0] == 202 and finished(server, asked)["status"] == "ready"
    with Sandbox.create(asked["templateID"]) as sandbox:
        assert sandbox.commands.run("cat /who; whoami").stdout == "nameless\nroot\n"
    assert server.call("DELETE", f"/templates/{asked['templateID']}")[0] == 204


def test_a_dockerfile_that_cannot_be_built_is_refused_at_once(server):
    for dockerfile, message in [
        (None, "dockerfile is required"),
        ("RUN true\n", "cannot be read: expected FROM"),
        ("FROM a\nFROM scratch\n", "line 2: FROM scratch"),
        ("FROM a\nCOPY app /app\n", "cofferdam template build"),
        ("FROM a\nADD git://example.com/x /x\n", "use RUN"),
    ]:
        status, _, answer = server.call("POST", "/templates", {"alias": fresh(), "dockerfile": dockerfile})
        assert status == 400 and message in answer["message"], answer
    status, _, answer = server.call("POST", "/templates", b"--x", {"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 400 and answer["message"].startswith("Endpoint deprecated please update your CLI"), answer
    assert server.call("POST", "/templates/nothing-here", {"dockerfile": "FROM a\n"})[0] == 404
    name = fresh()
    asked = server.call("POST", "/v3/templates", {"name": name})[2]
    status, _, answer = start(server, asked)
    assert status == 400 and f"POST /v2/templates/{asked['templateID']}" in answer["message"], answer
    status, _, answer = server.call("POST", f"/templates/{asked['templateID']}", {"alias": fresh(), "dockerfile": "FROM a\n"})
    assert status == 400 and "leave alias out" in answer["message"], answer


def test_an_accepted_dockerfile_survives_a_server_crash():
    server = Server("--slots", "1", "--pool", "0")
    try:
        asked = server.call("POST", "/templates", {"alias": "kept", "dockerfile": "FROM e2bdev/base\nRUN echo kept > /note\n"})[2]
        server.crash()
        server.restart()
        assert start(server, asked)[0] == 202 and finished(server, asked)["status"] == "ready"
        with Sandbox.create("kept", **options_of(server)) as sandbox:
            assert sandbox.files.read("/note") == "kept\n"
    finally:
        server.stop()


def test_the_second_version_of_the_build_api(server):
    name = fresh()
    status, _, asked = server.call("POST", "/v2/templates", {"alias": name, "cpuCount": 2, "memoryMB": 256})
    assert status == 202 and LEGACY <= set(asked) and asked["aliases"] == [name], asked
    path = f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
    assert server.call("POST", path, {"fromImage": "e2bdev/base", "steps": []})[0] == 202
    assert finished(server, asked)["status"] == "ready"


@pytest.mark.parametrize("agent", ["e2b-python-sdk/2.2.0", "e2b-js-sdk/1.9.1 e2b-cli/2.0.0", "e2b-js-sdk/2.3.0"])
def test_sdks_from_before_the_default_user_build_as_root(server, agent):
    old = "2.3.0" not in agent
    headers = {"User-Agent": agent}

    def build(name, spec):
        asked = server.call("POST", "/v3/templates", {"name": name}, headers)[2]
        path = f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
        assert server.call("POST", path, spec, headers)[0] == 202
        report = finished(server, asked)
        assert report["status"] == "ready", report

    run = {"type": "RUN", "args": ["(whoami; pwd) > /tmp/who"]}
    first, second = fresh(), fresh()
    build(first, {"fromImage": "e2bdev/base", "steps": [run, {"type": "WORKDIR", "args": ["/srv"]}, {"type": "USER", "args": ["root"]}]})
    build(second, {"fromTemplate": first, "steps": [{"type": "RUN", "args": ["(whoami; pwd) > /tmp/then"]}]})
    with Sandbox.create(second) as sandbox:
        said = sandbox.commands.run("cat /tmp/who /tmp/then; whoami; pwd").stdout.split()
    if old:
        assert said == ["root", "/root", "user", "/home/user", "user", "/home/user"]
    else:
        assert said == ["user", "/home/user", "root", "/srv", "root", "/srv"]


def test_concurrent_builds_of_a_team_are_limited():
    server = Server("--max-builds", "1", "--slots", "2", "--pool", "0")
    try:
        ask = lambda path, body: server.call("POST", path, body)
        slow = ask("/v3/templates", {"name": "slow"})[2]
        waits = ask("/v3/templates", {"name": "waits"})[2]
        spec = {"fromImage": "e2bdev/base", "steps": [{"type": "RUN", "args": ["sleep 1000"]}]}
        path = lambda asked: f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
        assert ask(path(slow), spec)[0] == 202
        for call, body in [
            ("/v3/templates", {"name": "more"}),
            ("/v2/templates", {"alias": "more"}),
            ("/templates", {"alias": "more", "dockerfile": "FROM e2bdev/base\n"}),
            (f"/templates/{waits['templateID']}", {"dockerfile": "FROM e2bdev/base\n"}),
            (path(waits), spec),
        ]:
            status, headers, answer = ask(call, body)
            assert status == 429 and "concurrent template builds (1)" in answer["message"], (call, answer)
            assert headers["Should-Retry"] == "false"
        # The running build makes room when it ends.
        assert server.call("DELETE", f"/templates/{slow['templateID']}")[0] == 204
        until = time.monotonic() + 20
        while (asked := ask("/v3/templates", {"name": "more"}))[0] == 429:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert asked[0] == 202
    finally:
        server.stop()
