"""A sandbox's connections go through a SOCKS5 proxy (`network.egressProxy`), and never past it."""

import json
import os
import pathlib
import subprocess

import pytest
from e2b import Sandbox, SandboxException

from fake_network import (
    ECHO, HOST, METADATA, NAME, PRIVATE, PROXY, PROXY_PASSWORD, PROXY_USER, PUBLIC, REBINDING, RESOLVER, TLS_PROXY,
)
from secure_web import DOMAIN
from server import Server

API = f"api.{DOMAIN}"
PUBLIC_PROXY = {"address": f"proxy.{DOMAIN}:{PROXY}", "username": PROXY_USER, "password": PROXY_PASSWORD}
# Nothing listens there.
DEAD_PROXY = {"address": f"{PUBLIC}:1"}


def create(server, proxy, **network):
    return Sandbox.create(
        api_key=server.key, api_url=server.url, sandbox_url=server.url, network={"egress_proxy": proxy, **network},
    )


def curl(sandbox, *words):
    words = " ".join(f"'{word}'" for word in words)
    return sandbox.commands.run(f"curl --silent --max-time 20 {words} || echo exit=$?").stdout


@pytest.fixture(scope="module")
def proxied(server):
    sandbox = create(server, PUBLIC_PROXY, rules={API: [{"transform": {"headers": {"X-Api-Key": "k1"}}}]})
    yield sandbox
    sandbox.kill()


def new_targets(world, sandbox, *words):
    """Runs curl; returns its output and what the proxy was asked for meanwhile."""
    before = len(world.proxied())
    return curl(sandbox, *words), world.proxied()[before:]


def test_names_are_given_to_the_proxy_as_names(world, proxied):
    page, targets = new_targets(world, proxied, f"http://{NAME}/")
    assert "hello" in page and targets == [f"{NAME}:80"]
    page, targets = new_targets(world, proxied, "--insecure", f"https://other.{DOMAIN}/")
    assert "headers" in page and targets == [f"other.{DOMAIN}:443"]
    # Nothing tells the name on other ports, and an address is no name.
    page, targets = new_targets(world, proxied, f"http://{NAME}:8080/")
    assert "hello" in page and targets == [f"{PUBLIC}:8080"]
    page, targets = new_targets(world, proxied, f"http://{PUBLIC}/")
    assert "hello" in page and targets == [f"{PUBLIC}:80"]


def test_bytes_pass_in_both_directions(world, proxied):
    program = f"""
import hashlib, os, socket, threading
client = socket.create_connection(("{PUBLIC}", {ECHO}))
sent = os.urandom(3 << 20)
threading.Thread(target=client.sendall, args=(sent,)).start()
received = b""
while len(received) < len(sent) and (data := client.recv(65536)):
    received += data
print(received == sent)
"""
    proxied.files.write("/tmp/echo.py", program)
    assert proxied.commands.run("python3 /tmp/echo.py").stdout == "True\n"
    assert f"{PUBLIC}:{ECHO}" in world.proxied()


def test_rules_are_applied_before_the_proxy(world, proxied):
    page, targets = new_targets(world, proxied, f"https://{API}/")
    headers = json.loads(page)["headers"]
    assert [value for name, value in headers if name.lower() == "x-api-key"] == ["k1"]
    assert targets == [f"{API}:443"]


def test_private_networks_are_those_of_the_proxy_and_never_the_hosts(world, proxied):
    page, targets = new_targets(world, proxied, f"http://{PRIVATE}/")
    assert f"{PRIVATE} host" in page and targets == [f"{PRIVATE}:80"]
    for address in [METADATA, HOST]:
        page, targets = new_targets(world, proxied, f"http://{address}/")
        assert "exit=" in page and not targets, address


def failing(server):
    return [
        DEAD_PROXY,
        {**PUBLIC_PROXY, "password": "wrong"},
        {"address": PUBLIC_PROXY["address"]},
        {**PUBLIC_PROXY, "address": f"{PUBLIC}:{ECHO}"},
        # Its certificate is of an authority that the host does not trust.
        {**PUBLIC_PROXY, "address": f"proxy.{DOMAIN}:{TLS_PROXY}", "tls": True},
        # Routed nowhere: no answer at all.
        {"address": "192.0.2.1:1080"},
    ]


def test_without_the_proxy_there_is_no_connection(world, server):
    sandbox = create(server, DEAD_PROXY)
    try:
        rules = {API: [{"transform": {"headers": {"X-Api-Key": "k1"}}}]}
        for proxy in failing(server):
            sandbox.update_network({"egress_proxy": proxy, "rules": rules})
            before = len(world.proxied())
            # The echo server would be reached without any proxy.
            shown = curl(sandbox, "--write-out", "%{time_total}", f"http://{NAME}/")
            seconds, ended = float(shown.split("exit=")[0]), "exit=" in shown
            assert ended and "hello" not in shown and seconds < 15, (proxy, shown)
            answer = json.loads(curl(sandbox, f"https://{API}/"))
            assert answer["error"].startswith("egress transform: egress proxy: "), (proxy, answer)
            assert PROXY_PASSWORD not in str(answer)
            assert len(world.proxied()) == before, proxy
    finally:
        sandbox.kill()


def test_tls_to_the_proxy(world, server):
    tls = {"ca_cert": world.authority.read_text()}
    named = {**PUBLIC_PROXY, "address": f"proxy.{DOMAIN}:{TLS_PROXY}", "tls": tls}
    by_address = {**PUBLIC_PROXY, "address": f"{PUBLIC}:{TLS_PROXY}", "tls": {**tls, "server_name": f"a.{DOMAIN}"}}
    sandbox = create(server, named)
    try:
        for proxy in [named, by_address]:
            sandbox.update_network({"egress_proxy": proxy})
            page, targets = new_targets(world, sandbox, f"http://{NAME}/")
            assert "hello" in page and targets == [f"{NAME}:80"]
        # The certificate is for names below the domain alone.
        sandbox.update_network({"egress_proxy": {**by_address, "tls": tls}})
        assert "exit=" in curl(sandbox, f"http://{NAME}/")
    finally:
        sandbox.kill()


def test_an_update_replaces_the_proxy_and_a_pause_keeps_it(world, server):
    sandbox = create(server, PUBLIC_PROXY)
    try:
        sandbox.pause()
        sandbox = Sandbox.connect(sandbox.sandbox_id)
        assert new_targets(world, sandbox, f"http://{NAME}/")[1] == [f"{NAME}:80"]
        sandbox.update_network({"deny_out": ["192.0.2.0/24"]})
        page, targets = new_targets(world, sandbox, f"http://{NAME}/")
        assert "hello" in page and not targets, "an update without a proxy removes it"
    finally:
        sandbox.kill()


def test_rules_about_addresses_are_not_left_to_the_proxy(world, server):
    """The proxy resolves names: with a name that leads to a denied address a program would get past the rule."""
    sandbox = create(server, PUBLIC_PROXY, deny_out=[f"{PRIVATE}/32", "192.0.2.0/24"])
    try:
        page, targets = new_targets(world, sandbox, f"http://{PUBLIC}/", "-H", f"Host: {REBINDING}")
        assert "hello" in page and targets == [f"{PUBLIC}:80"]
        assert "exit=" in curl(sandbox, f"http://{PRIVATE}/")
        sandbox.update_network({"egress_proxy": PUBLIC_PROXY, "allow_out": [NAME], "deny_out": ["0.0.0.0/0"]})
        page, targets = new_targets(world, sandbox, f"http://{NAME}/")
        assert "hello" in page and targets == [f"{NAME}:80"]
        page, targets = new_targets(world, sandbox, f"http://{PUBLIC}/", "-H", "Host: other.example.test")
        assert "exit=" in page and not targets
    finally:
        sandbox.kill()


@pytest.fixture(scope="module")
def with_own_proxy(world):
    server = Server("--dns", f"{RESOLVER}:53", "--egress-proxy-allow-internal", f"{PRIVATE}/32")
    yield server
    server.stop()


def test_a_proxy_of_the_operators_network_leads_to_no_other_machine_of_it(world, with_own_proxy):
    sandbox = create(with_own_proxy, {"address": f"{PRIVATE}:{PROXY}"})
    try:
        before = len(world.proxied("private"))
        assert "hello" in curl(sandbox, f"http://{NAME}/")
        # Names are resolved and checked before it is asked.
        assert world.proxied("private")[before:] == [f"{PUBLIC}:80"]
        for words in [
            [f"http://{PRIVATE}/"], [f"http://{METADATA}/"], ["-H", f"Host: {REBINDING}", f"http://{PUBLIC}/"],
            ["-H", f"Host: {HOST}", f"http://{PRIVATE}/"],
        ]:
            assert "exit=" in curl(sandbox, *words), words
        assert len(world.proxied("private")) == before + 1
    finally:
        sandbox.kill()


@pytest.mark.parametrize("proxy, message", [
    ({"address": f"{PRIVATE}:{PROXY}"}, "resolves to an internal / denied IP range"),
    ({"address": "127.0.0.1:1080"}, "resolves to an internal / denied IP range"),
    ({"address": f"{HOST}:1080"}, "resolves to an internal / denied IP range"),
    ({"address": f"{REBINDING}:1080"}, f"{REBINDING} resolves to {METADATA}"),
    ({"address": f"nowhere.{DOMAIN}:1080"}, f'resolve egress proxy host "nowhere.{DOMAIN}"'),
    ({"address": "socks5://a.example:1080"}, "must be in host:port form"),
    ({"address": f"{PUBLIC}:0"}, "is not a valid 1-65535 value"),
    ({"address": f"{PUBLIC}:1080", "password": "p"}, "password must be empty when username is empty"),
    ({"address": f"{PUBLIC}:1080", "tls": {"ca_cert": "-----BEGIN CERTIFICATE-----\nx"}}, "tls.caCert"),
])
def test_invalid_proxies_are_refused(server, proxied, proxy, message):
    with pytest.raises(SandboxException, match="Invalid egress proxy config: ") as refused:
        create(server, proxy)
    assert message in str(refused.value)
    with pytest.raises(SandboxException, match="Invalid egress proxy config: "):
        proxied.update_network({"egress_proxy": proxy})


def test_the_password_is_shown_to_nobody(server, proxied):
    status, _, detail = server.call("GET", f"/sandboxes/{proxied.sandbox_id}")
    assert status == 200
    assert detail["network"]["egressProxy"] == {"address": PUBLIC_PROXY["address"], "username": PROXY_USER}
    # Not the files of sandboxes, which are one large image.
    files = [path for path in server.data.iterdir() if path.is_file() and path.stat().st_size < 64 << 20]
    assert files and not [path for path in files if PROXY_PASSWORD.encode() in path.read_bytes()]
    assert PROXY_PASSWORD not in (pathlib.Path(server.dir.name) / "log").read_text()


JAVASCRIPT = """
import { Sandbox } from 'e2b'
const sandbox = await Sandbox.create({ network: { egressProxy: JSON.parse(process.argv[2]) } })
try {
  const page = await sandbox.commands.run(`curl --silent http://${process.argv[3]}/`)
  const info = await Sandbox.getInfo(sandbox.sandboxId)
  console.log(JSON.stringify({ page: page.stdout, proxy: info.network.egressProxy }))
} finally {
  await sandbox.kill()
}
"""


def test_the_javascript_client_sets_a_proxy(world, server, tmp_path):
    program = tmp_path / "proxy.mjs"
    program.write_text(JAVASCRIPT)
    (tmp_path / "node_modules").symlink_to(pathlib.Path(os.environ["COFFERDAM_NODE_MODULES"]) / "node_modules")
    before = len(world.proxied())
    words = ["node", str(program), json.dumps(PUBLIC_PROXY), NAME]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | server.environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "hello" in seen["page"] and world.proxied()[before:] == [f"{NAME}:80"]
    assert seen["proxy"]["address"] == PUBLIC_PROXY["address"]
