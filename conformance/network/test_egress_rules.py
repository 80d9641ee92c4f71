"""Header rules (`network.rules`): the server sets headers on requests of sandboxes, and programs inside never have them."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import subprocess
import threading

import pytest
from e2b import Sandbox, SandboxException

from fake_network import PUBLIC
from secure_web import DOMAIN, UNTRUSTED

API = f"api.{DOMAIN}"
OTHER = f"other.{DOMAIN}"


def rule(**headers):
    return [{"transform": {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}}]


@pytest.fixture(scope="module")
def ruled(server):
    rules = {API: rule(X_Api_Key="k1"), f"h1.{DOMAIN}": rule(X_Api_Key="k1"), UNTRUSTED: rule(X_Api_Key="k1"),
             f"nowhere.{DOMAIN}": rule(X_Api_Key="k1"), f"rebinding.{DOMAIN}": rule(X_Api_Key="k1"),
             f"{API}:8443": rule(X_Api_Key="k8443")}
    sandbox = Sandbox.create(network={"rules": rules})
    yield sandbox
    sandbox.kill()


def run(sandbox, command):
    done = sandbox.commands.run(f"{command} || echo exit=$?")
    return done.stdout


def get(sandbox, url, *words):
    """The JSON of a response."""
    words = " ".join(f"'{word}'" for word in words)
    return json.loads(run(sandbox, f"curl --silent --show-error --max-time 10 {words} '{url}'"))


def status(sandbox, url, *words):
    words = " ".join(f"'{word}'" for word in words)
    return run(sandbox, f"curl --silent --output /dev/null --write-out '%{{http_code}}' --max-time 10 {words} '{url}'")


def values(response, name):
    assert "headers" in response, response
    return [value for key, value in response["headers"] if key.lower() == name]


def python(sandbox, program):
    """Runs a program inside; returns its output."""
    encoded = base64.b64encode(program.encode()).decode()
    return sandbox.commands.run(f"echo {encoded} | base64 -d > /tmp/program.py && python3 /tmp/program.py").stdout


def keys_of(sandbox, host=API):
    return values(get(sandbox, f"https://{host}/"), "x-api-key")


def test_a_rule_replaces_what_the_program_sends(ruled):
    seen = get(ruled, f"https://{API}/path?q=1", "-H", "X-Api-Key: own", "-H", "x-api-key: two", "-H", "X-Kept: Yes", "--http1.1")
    assert values(seen, "x-api-key") == ["k1"]
    assert ["X-Kept", "Yes"] in seen["headers"] and seen["path"] == "/path?q=1" and seen["version"] == "1.1"
    # The port has a rule of its own.
    assert values(get(ruled, f"https://{API}:8443/"), "x-api-key") == ["k8443"]


def test_a_program_cannot_have_the_header_removed(ruled):
    seen = get(ruled, f"https://{API}/", "-H", "Connection: X-Api-Key, close", "--http1.1")
    assert values(seen, "x-api-key") == ["k1"]


def test_hosts_without_a_rule_are_not_touched(ruled):
    shown = run(ruled, f"curl -k -v --silent https://{OTHER}/ 2>&1")
    assert "issuer: CN=Fake internet" in shown and "k1" not in shown
    shown = run(ruled, f"curl -v --silent https://{API}/ 2>&1")
    assert "issuer: CN=Cofferdam egress" in shown


def test_plain_http_gets_no_header(ruled):
    assert "hello" in run(ruled, f"curl --silent http://{API}/")
    assert f"host {API}" in run(ruled, f"curl --silent -H 'Host: {API}' http://{PUBLIC}/")


def test_a_request_for_another_host_is_not_sent(ruled):
    """Both names have one certificate and one server: without this check the other site would be sent the secret."""
    for version in ["--http1.1", "--http2"]:
        assert status(ruled, f"https://{API}/", "-H", f"Host: {OTHER}", version) == "421"
        assert status(ruled, f"https://{API}/", version) == "200"
    assert status(ruled, f"https://{API}/", "--request-target", f"https://{OTHER}/", "--http1.1") == "405"
    assert status(ruled, f"https://{API}/", "-X", "CONNECT", "--request-target", f"{OTHER}:443", "--http1.1") == "405"


def test_names_are_resolved_outside_the_sandbox(ruled):
    """A program that has its own server for the name does not get the header there."""
    for address in ["203.0.113.2", PUBLIC]:
        seen = get(ruled, f"https://{API}/", "--resolve", f"{API}:443:{address}")
        assert values(seen, "x-api-key") == ["k1"] and values(seen, "host") + values(seen, ":authority") == [API]
    # A name that the resolver gives an address of the host's network.
    answer = get(ruled, f"https://rebinding.{DOMAIN}/", "--resolve", f"rebinding.{DOMAIN}:443:{PUBLIC}")
    assert answer["error"] == "egress transform: the host has no address that the sandbox may reach"


def test_failures_are_responses_that_say_why(ruled):
    assert status(ruled, f"https://{UNTRUSTED}/") == "502"
    answer = get(ruled, f"https://{UNTRUSTED}/")
    assert answer["error"].startswith("egress transform: TLS with the host failed: invalid peer certificate")
    answer = get(ruled, f"https://nowhere.{DOMAIN}/", "--resolve", f"nowhere.{DOMAIN}:443:{PUBLIC}")
    assert answer["error"] == "egress transform: the host name cannot be resolved"


def test_http2_and_http1_are_translated(ruled):
    seen = get(ruled, f"https://{API}/", "--http2")
    assert (seen["version"], values(seen, "x-api-key")) == ("2", ["k1"])
    seen = get(ruled, f"https://h1.{DOMAIN}/", "--http2", "-H", "Cookie: a=1")
    assert (seen["version"], values(seen, "x-api-key"), values(seen, "host")) == ("1.1", ["k1"], [f"h1.{DOMAIN}"])


GRPC = f"""
import socket, ssl
context = ssl.create_default_context()
context.set_alpn_protocols(["h2"])
client = context.wrap_socket(socket.create_connection(("{API}", 443)), server_hostname="{API}")
assert client.selected_alpn_protocol() == "h2"
def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
def literal(name, value):
    return b"\\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
head = b"".join(literal(*pair) for pair in [
    (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"{API}"), (b":path", b"/Service/Call"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"x-api-key", b"own")])
client.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, head) + frame(0, 1, 1, b"\\0\\0\\0\\0\\2hi"))
received = b""
def take(length):
    global received
    while len(received) < length:
        more = client.recv(65536)
        assert more, "closed"
        received += more
    taken, received = received[:length], received[length:]
    return taken
body, headers = b"", 0
while True:
    length, kind, flags, stream = int.from_bytes(take(3), "big"), take(1)[0], take(1)[0], int.from_bytes(take(4), "big")
    payload = take(length)
    if kind == 0: body += payload
    if kind == 1: headers += 1
    if stream == 1 and flags & 1: break
print(headers)
print(body.decode())
"""


def test_grpc_has_its_trailers(ruled):
    """Response headers, data, and trailers as headers of their own, as gRPC needs them."""
    headers, body = python(ruled, GRPC).splitlines()
    assert headers == "2"
    seen = json.loads(body)
    assert (seen["version"], seen["length"], values(seen, "x-api-key"), values(seen, "te")) == ("2", 7, ["k1"], ["trailers"])


def test_bodies_are_streamed(ruled):
    run(ruled, "head -c 50000000 /dev/zero > /tmp/body")
    for version in ["--http1.1", "--http2"]:
        assert get(ruled, f"https://{API}/", version, "--data-binary", "@/tmp/body")["length"] == 50_000_000
    assert get(ruled, f"https://{API}/", "--http1.1", "-H", "Transfer-Encoding: chunked", "--data-binary", "@/tmp/body")["length"] == 50_000_000
    assert run(ruled, f"curl --silent https://h1.{DOMAIN}/bytes/65536000 | wc -c").strip() == "65536000"


UPGRADE = f"""
import socket, ssl
client = ssl.create_default_context().wrap_socket(socket.create_connection(("{API}", 443)), server_hostname="{API}")
client.sendall(b"GET / HTTP/1.1\\r\\nHost: {API}\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\nX-Api-Key: own\\r\\n\\r\\n")
stream = client.makefile("rb")
print(stream.readline().decode().strip())
while stream.readline().strip(): pass
print(stream.readline().decode().strip())
for n in range(3):
    client.sendall(b"frame %d\\n" % n)
    print(stream.readline().decode().strip())
"""


def test_protocols_are_switched(ruled):
    first, headers, *frames = python(ruled, UPGRADE).splitlines()
    assert first == "HTTP/1.1 101 Switching Protocols"
    assert [value for name, value in json.loads(headers) if name.lower() == "x-api-key"] == ["k1"]
    assert frames == ["frame 0", "frame 1", "frame 2"]


def test_wildcards_and_the_longest_suffix(server):
    rules = {f"*.{DOMAIN}": rule(X_Api_Key="wide"), f"*.deep.{DOMAIN}": rule(X_Api_Key="narrow"), f"free.{DOMAIN}": []}
    sandbox = Sandbox.create(network={"rules": rules})
    try:
        assert keys_of(sandbox) == ["wide"]
        assert keys_of(sandbox, f"a.deep.{DOMAIN}") == ["narrow"]
        assert "Fake internet" in run(sandbox, f"curl -k -v --silent https://{DOMAIN}/ 2>&1")
        assert "Fake internet" in run(sandbox, f"curl -k -v --silent https://free.{DOMAIN}/ 2>&1")
    finally:
        sandbox.kill()


KEPT_ALIVE = f"""
import http.client, json, sys
client = http.client.HTTPSConnection("{API}")
for _ in range(4):
    client.request("GET", "/")
    seen = json.loads(client.getresponse().read())
    print([value for name, value in seen["headers"] if name.lower() == "x-api-key"], flush=True)
    sys.stdin.readline()
"""


def test_a_new_rule_holds_for_the_next_request_of_an_open_connection(server):
    sandbox = Sandbox.create(network={"rules": {API: rule(X_Api_Key="one")}})
    try:
        sandbox.files.write("/tmp/kept.py", KEPT_ALIVE)
        lines, arrived = [], threading.Semaphore(0)

        def receive(text):
            for line in text.splitlines():
                lines.append(line)
                arrived.release()

        def follow():
            # The sandbox ends before the program.
            with contextlib.suppress(SandboxException):
                process.wait(on_stdout=receive)

        process = sandbox.commands.run("python3 /tmp/kept.py", background=True, stdin=True)
        threading.Thread(target=follow, daemon=True).start()
        for network in [{"rules": {API: rule(X_Api_Key="two")}}, {"rules": {OTHER: rule(X_Api_Key="none")}}, {}]:
            assert arrived.acquire(timeout=20)
            sandbox.update_network(network)
            sandbox.commands.send_stdin(process.pid, "\n")
        assert arrived.acquire(timeout=20)
        assert lines == ["['one']", "['two']", "[]", "[]"]
    finally:
        sandbox.kill()


def test_rules_are_shown_as_stored_and_survive_a_pause(server):
    rules = {f"API.{DOMAIN}": rule(X_Api_Key="k1", X_Secret="${e2b.secrets.none}")}
    sandbox = Sandbox.create(network={"rules": {f"API.{DOMAIN}": rule(X_Api_Key="k1")}})
    try:
        shown = server.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]["network"]["rules"]
        assert shown == {API: rule(X_Api_Key="k1")}
        sandbox.pause()
        sandbox.connect()
        assert keys_of(sandbox) == ["k1"]
        sandbox.update_network({"rules": rules})
        shown = server.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]["network"]["rules"]
        assert shown == {API: rules[f"API.{DOMAIN}"]}
        assert get(sandbox, f"https://{API}/")["error"] == 'egress transform: secret "none" not found'
        sandbox.update_network({})
        assert "rules" not in server.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2].get("network", {})
    finally:
        sandbox.kill()


def test_a_fork_has_the_rules_of_its_parent(server):
    sandbox = Sandbox.create(network={"rules": {API: rule(X_Api_Key="k1")}})
    try:
        status_code, _, forked = server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 1})
        assert status_code == 201, forked
        fork = Sandbox.connect(forked[0]["sandbox"]["sandboxID"])
        try:
            assert keys_of(fork) == ["k1"]
        finally:
            fork.kill()
    finally:
        sandbox.kill()


JAVASCRIPT = """
import { Sandbox, Secret } from 'e2b'
const [host] = process.argv.slice(2)
await Secret.create('js_key', 'from javascript')
const transform = { headers: { 'X-Api-Key': 'k', Authorization: Secret.fill('js_key') } }
const sandbox = await Sandbox.create({ network: { rules: { [host]: [{ transform }] } } })
const seen = async () => JSON.parse((await sandbox.commands.run(`curl --silent --insecure https://${host}/`)).stdout).headers
try {
  const first = await seen()
  await Secret.update('js_key', 'changed')
  const second = await seen()
  await sandbox.updateNetwork({ rules: {} })
  const third = await seen()
  const value = (headers, name) => headers.filter(([key]) => key.toLowerCase() === name).map(([, value]) => value)
  const both = (headers) => [value(headers, 'x-api-key'), value(headers, 'authorization')]
  console.log(JSON.stringify([first, second, third].map(both)))
} finally {
  await sandbox.kill()
  console.log(await Secret.destroy('js_key'))
}
"""


def test_rules_and_secrets_of_the_javascript_client(server, tmp_path):
    modules = pathlib.Path(os.environ["COFFERDAM_NODE_MODULES"]) / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    program = tmp_path / "rules.mjs"
    program.write_text(JAVASCRIPT)
    environment = os.environ | server.environment()
    done = subprocess.run(["node", str(program), API], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    seen, destroyed = done.stdout.splitlines()
    assert json.loads(seen) == [[["k"], ["from javascript"]], [["k"], ["changed"]], [[], []]] and destroyed == "true"


async def create_async(rules):
    from e2b import AsyncSandbox, AsyncSecret

    await AsyncSecret.create("async_key", "from async")
    sandbox = await AsyncSandbox.create(network={"rules": rules})
    try:
        seen = json.loads((await sandbox.commands.run(f"curl --silent https://{API}/")).stdout)
        await sandbox.update_network({"rules": {}})
        cleared = json.loads((await sandbox.commands.run(f"curl --silent --insecure https://{API}/")).stdout)
        return seen, cleared
    finally:
        await sandbox.kill()
        await AsyncSecret.destroy("async_key")


def test_rules_and_secrets_of_the_async_client(server):
    seen, cleared = asyncio.run(create_async({API: rule(Authorization="${e2b.secrets.async_key}")}))
    assert values(seen, "authorization") == ["from async"] and values(cleared, "authorization") == []


def test_a_host_must_be_allowed_besides_having_a_rule(server):
    rules = {API: rule(X_Api_Key="k1")}
    denied = Sandbox.create(network={"rules": rules, "deny_out": ["0.0.0.0/0"]})
    allowed = Sandbox.create(network={"rules": rules, "allow_out": [API], "deny_out": ["0.0.0.0/0"]})
    try:
        assert "exit=" in run(denied, f"curl --silent --max-time 10 --resolve {API}:443:{PUBLIC} https://{API}/")
        assert keys_of(allowed) == ["k1"]
    finally:
        denied.kill()
        allowed.kill()


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"1.2.3.4": []}, 'Rule domain "1.2.3.4" is not a valid domain name.'),
        ({API: [{}, {}]}, f'Domain "{API}" can have at most 1 transform rule.'),
        ({API: rule(X_A="a\nb")}, f'Value for header "X-A" in rule for domain "{API}" contains invalid characters.'),
        ({API: rule(Transfer_Encoding="x")}, f'Header name "Transfer-Encoding" in rule for domain "{API}" cannot be set'),
    ],
)
def test_invalid_rules_are_refused(server, ruled, rules, message):
    with pytest.raises(SandboxException, match="^400: ") as raised:
        Sandbox.create(network={"rules": rules})
    assert message in str(raised.value)
    with pytest.raises(SandboxException, match="^400: ") as raised:
        ruled.update_network({"rules": rules})
    assert message in str(raised.value)


def holding(paths, needles):
    """Those of the needles that any of the files contains. Holes of files are skipped: the storage is one large sparse file."""
    found = set()
    for path in paths:
        with open(path, "rb") as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                end, kept = os.lseek(file.fileno(), at, os.SEEK_HOLE), b""
                while at < end:
                    os.lseek(file.fileno(), at, os.SEEK_SET)
                    chunk = os.read(file.fileno(), min(16 << 20, end - at))
                    if not chunk:
                        break
                    window = kept + chunk
                    found |= {needle for needle in needles if needle.encode() in window}
                    kept, at = window[-256:], at + len(chunk)
                at = max(at, end)
    return found


def secret_values(sandbox, host=API):
    return values(get(sandbox, f"https://{host}/"), "authorization")


def test_secrets_are_used_updated_and_deleted_while_a_connection_is_open(server):
    from e2b import Secret

    canary, other = "canary-47e11a", "canary-5b0c22"
    made = Secret.create("Api_Key", canary)
    assert (made.name, made.version) == ("api_key", 1)
    sandbox = Sandbox.create(network={"rules": {API: rule(Authorization="Bearer ${e2b.secrets.API_KEY}")}})
    try:
        sandbox.files.write("/tmp/kept.py", KEPT_ALIVE.replace("x-api-key", "authorization").replace('seen["headers"]', 'seen.get("headers", [["authorization", str(seen)]])'))
        lines, arrived = [], threading.Semaphore(0)

        def receive(text):
            for line in text.splitlines():
                lines.append(line)
                arrived.release()

        def follow():
            with contextlib.suppress(SandboxException):
                process.wait(on_stdout=receive)

        process = sandbox.commands.run("python3 /tmp/kept.py", background=True, stdin=True)
        threading.Thread(target=follow, daemon=True).start()
        for change in [lambda: Secret.update("api_key", other), lambda: Secret.destroy("api_key"), lambda: None]:
            assert arrived.acquire(timeout=20)
            change()
            sandbox.commands.send_stdin(process.pid, "\n")
        assert arrived.acquire(timeout=20)
        assert lines[:2] == [f"['Bearer {canary}']", f"['Bearer {other}']"]
        assert 'secret "api_key" not found' in lines[2] and 'secret "api_key" not found' in lines[3]
        # The host sends headers back, so the program has had it; the server has written it nowhere.
        log = pathlib.Path(server.dir.name, "log").read_text()
        assert canary not in log and other not in log
        assert f"{API}" in log and "api_key" in log, "each use leaves a line"
        assert not holding([path for path in server.data.iterdir() if path.is_file()], [canary, other])
    finally:
        sandbox.kill()


def test_a_paused_sandbox_holds_no_secret(server):
    """Programs that use a secret whose host does not send it back never have it: not in memory, not in files."""
    from e2b import Secret

    canary = "canary-91ffe0d7"
    Secret.create("silent", canary)
    sandbox = Sandbox.create(network={"rules": {API: rule(Authorization="${e2b.secrets.silent}")}})
    try:
        assert run(sandbox, f"curl --silent --http1.1 https://{API}/bytes/65536 | wc -c").strip() == "65536"
        shown = server.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]
        assert canary not in json.dumps(shown)
        sandbox.commands.run("export MARKER=marker-in-memory-77; sleep 1000", background=True)
        sandbox.files.write("/tmp/marker", "marker-in-files-77" * 1000)
        sandbox.pause()
        files = [path for path in server.data.rglob("*") if path.is_file() and not path.is_symlink()]
        needles = [canary, "marker-in-memory-77", "marker-in-files-77"]
        assert holding(files, needles) == set(needles[1:]), "the search finds all but the secret"
        assert canary not in pathlib.Path(server.dir.name, "log").read_text()
        sandbox.connect()
        assert secret_values(sandbox) == [canary]
    finally:
        sandbox.kill()
        Secret.destroy("silent")


def test_a_secret_goes_to_its_hosts_and_its_team_only(server):
    from e2b import Secret

    Secret.create("narrow", "v1", metadata={"cofferdam.allowed_hosts": f"*.deep.{DOMAIN}"})
    sandbox = Sandbox.create(network={"rules": {f"*.{DOMAIN}": rule(Authorization="${e2b.secrets.narrow}")}})
    try:
        assert secret_values(sandbox, f"a.deep.{DOMAIN}") == ["v1"]
        assert get(sandbox, f"https://{API}/")["error"] == 'egress transform: secret "narrow" may not be sent to this host'
    finally:
        sandbox.kill()
        Secret.destroy("narrow")


def test_the_api_of_secrets(server):
    from e2b import Secret
    from e2b.exceptions import SecretNotFoundException

    Secret.create("one", "1", metadata={"a": "b"})
    for name in ["two", "three"]:
        Secret.create(name, "x")
    try:
        assert Secret.get_info("ONE").metadata == {"a": "b"}
        updated = Secret.update("one", "2")
        assert (updated.version, updated.metadata) == (2, {"a": "b"})
        assert Secret.exists("one") and not Secret.exists("nothing")
        assert not Secret.destroy("nothing")
        with pytest.raises(SecretNotFoundException):
            Secret.update("nothing", "x")
        pages, names = Secret.list(limit=2), []
        while pages.has_next:
            names.append([secret.name for secret in pages.next_items()])
        assert names == [["one", "two"], ["three"]]
        for method, path, body, status, text in [
            ("POST", "/secrets", {"name": "one", "value": "x"}, 409, "Secret cannot be modified in its current state"),
            ("POST", "/secrets", {"name": "sec_x", "value": "x"}, 400, "Invalid secrets request"),
            ("POST", "/secrets", {"name": "ok", "value": ""}, 400, "Invalid secrets request"),
            ("POST", "/secrets", {"name": "ok", "value": "x" * 65537}, 400, "Invalid secrets request"),
            ("POST", "/secrets", b"{", 400, "Invalid secrets request"),
            ("GET", "/secrets/sec_x", None, 400, "Invalid secrets request"),
            ("GET", "/secrets?limit=101", None, 400, "Invalid secrets request"),
            ("GET", "/secrets/none", None, 404, "Secret not found"),
        ]:
            answer = server.call(method, path, body)
            assert (answer[0], answer[2]["message"], answer[1]["Cache-Control"]) == (status, text, "no-store"), path
        refused = server.call("GET", "/secrets", headers={"X-API-Key": "e2b_00"})
        assert (refused[0], refused[2]["message"], refused[1]["Cache-Control"]) == (401, "You are not authenticated", "no-store")
    finally:
        for name in ["one", "two", "three"]:
            Secret.destroy(name)


def test_secrets_are_set_on_the_command_line(server, tmp_path):
    (tmp_path / "value").write_text("from a file\n")
    server.cli("secret", "set", "By-File", "--file", str(tmp_path / "value"), "--host", API)
    sandbox = Sandbox.create(network={"rules": {API: rule(Authorization="${e2b.secrets.by-file}")}})
    try:
        assert secret_values(sandbox) == ["from a file"]
        assert "by-file" in server.cli("secret", "list") and "from a file" not in server.cli("secret", "list", "--json")
        server.cli("secret", "delete", "by-file")
        assert json.loads(server.cli("secret", "list", "--json")) == []
    finally:
        sandbox.kill()
