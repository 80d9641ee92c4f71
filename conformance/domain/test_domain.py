"""The official SDKs with `E2B_DOMAIN` and `E2B_API_KEY` alone: names by our own DNS, TLS by our own authority."""

import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request

import pytest
from e2b import AsyncSandbox, Sandbox, Template

from domain import DOMAIN, domain_findings, fetch, run
from server import Server
from services import serve


def test_sandboxes_are_used_through_the_domain(server, sandbox):
    assert not {"E2B_API_URL", "E2B_SANDBOX_URL"} & os.environ.keys()
    assert sandbox.sandbox_domain == DOMAIN
    assert sandbox.commands.run("echo $((6 * 7))").stdout == "42\n"
    sandbox.files.write("a.txt", "text")
    assert sandbox.files.read("a.txt") == "text"
    assert [found.sandbox_id for found in Sandbox.list().next_items()] == [sandbox.sandbox_id]
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("a.txt") == "text"


async def test_the_asynchronous_client_uses_the_domain(server):
    sandbox = await AsyncSandbox.create()
    assert (await sandbox.commands.run("echo hello")).stdout == "hello\n"
    await sandbox.kill()


def test_links_to_files_are_complete(server, sandbox):
    sandbox.files.write("a.txt", "text")
    url = sandbox.download_url("a.txt", use_signature_expiration=60)
    assert url.startswith(f"https://49983-{sandbox.sandbox_id}.{DOMAIN}/files?")
    assert fetch(url).read() == b"text"


def test_servers_in_sandboxes_are_reached_by_host(server, sandbox):
    serve(sandbox, 8000)
    host = sandbox.get_host(8000)
    assert host == f"8000-{sandbox.sandbox_id}.{DOMAIN}"
    seen = json.load(fetch(f"https://{host}/echo", **{"X-Forwarded-Proto": "http", "X-Forwarded-Port": "80"}))
    assert seen["headers"]["host"] == host
    assert not [name for name in seen["headers"] if name.startswith("x-forwarded")]
    body = os.urandom(8 << 20)
    assert json.load(fetch(f"https://{host}/echo", data=body))["size"] == len(body)
    assert len(fetch(f"https://{host}/big").read()) == 100 << 20


def test_a_build_copies_files_by_a_link_of_the_domain(server, tmp_path):
    (tmp_path / "copied.txt").write_text("copied")
    template = Template(file_context_path=tmp_path).from_template("base").copy("copied.txt", "/copied.txt")
    Template.build(template, "over-tls", cpu_count=1, memory_mb=512)
    sandbox = Sandbox.create("over-tls")
    assert sandbox.files.read("/copied.txt") == "copied"
    sandbox.kill()


def test_links_have_the_port_that_the_client_used(server):
    """Also by HTTP/2, where the host is in `:authority`."""
    status, _, made = server.call("POST", "/v3/templates", {"name": "linked"})
    assert status < 300, made
    path = f"/templates/{made['templateID']}/files/{'a' * 64}"
    key = f"X-API-Key: {server.key}"
    for version in ("--http1.1", "--http2"):
        answer = run("curl", "--silent", "--fail", version, "--header", key, f"https://api.{DOMAIN}{path}")
        assert json.loads(answer)["url"].startswith(f"https://api.{DOMAIN}/"), answer


def test_http_2_is_negotiated_and_http_is_redirected(server):
    version = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code} %{redirect_url}")
    assert run(*version, f"https://api.{DOMAIN}/health").split() == ["2", "200"]
    assert run(*version, f"http://api.{DOMAIN}/health?a").split() == ["1.1", "308", f"https://api.{DOMAIN}/health?a"]


def test_the_end_of_a_sandbox_arrives_as_a_reset(server):
    sandbox = Sandbox.create()
    serve(sandbox, 8000)
    host = sandbox.get_host(8000)
    plain = socket.create_connection((host, 443))
    context = ssl.create_default_context()
    with context.wrap_socket(plain, server_hostname=host) as link:
        link.sendall(f"GET /endless HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert link.recv(1)
        # OpenSSL reports a reset and a bare end alike.
        with socket.socket(fileno=os.dup(link.fileno())) as beneath:
            sandbox.kill()
            with pytest.raises(ConnectionResetError):
                while beneath.recv(1 << 20):
                    pass


def test_other_names_and_strangers_are_not_trusted(server, tmp_path):
    """The authority can sign for nothing but the domain, however it is used."""
    tls = server.data / "tls" / DOMAIN
    key, certificate, extensions = (tmp_path / name for name in ("key", "certificate", "extensions"))
    extensions.write_text("subjectAltName=DNS:api.e2b.app\n")
    request = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x")
    run(*request, "-keyout", str(key), "-out", str(tmp_path / "request"))
    signed = ("-CA", str(tls / "authority.crt"), "-CAkey", str(tls / "authority.key"), "-extfile", str(extensions))
    run("openssl", "x509", "-req", "-in", str(tmp_path / "request"), *signed, "-out", str(certificate))
    verify = ["openssl", "verify", "-CAfile", str(tls / "authority.crt"), str(certificate)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode != 0 and "permitted subtree violation" in done.stderr, done.stderr


JAVASCRIPT = """
import assert from 'node:assert/strict'
import { Sandbox, Template } from 'e2b'

assert.equal(process.env.E2B_API_URL ?? process.env.E2B_SANDBOX_URL, undefined)
const sandbox = await Sandbox.create()
assert.equal((await sandbox.commands.run('echo hello')).stdout, 'hello\\n')
await sandbox.files.write('a.txt', 'text')
assert.equal(await (await fetch(await sandbox.downloadUrl('a.txt'))).text(), 'text')
await sandbox.commands.run('python3 -m http.server 8000', { background: true, timeoutMs: 0 })
const url = `https://${sandbox.getHost(8000)}/a.txt`
let answer
while ((answer = await fetch(url)).status === 502) await new Promise((resolve) => setTimeout(resolve, 50))
assert.equal(await answer.text(), 'text')
await sandbox.kill()
const template = Template({ fileContextPath: process.argv[2] }).fromTemplate('base').copy('copied.txt', '/copied.txt')
await Template.build(template, 'over-tls-js', { cpuCount: 1, memoryMB: 512 })
const built = await Sandbox.create('over-tls-js')
assert.equal(await built.files.read('/copied.txt'), 'copied')
await built.kill()
console.log('all done')
"""


def test_the_javascript_client_uses_the_domain(server, tmp_path):
    modules = pathlib.Path(os.environ["COFFERDAM_NODE_MODULES"]) / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "copied.txt").write_text("copied")
    program = tmp_path / "program.mjs"
    program.write_text(JAVASCRIPT)
    done = subprocess.run(["node", str(program), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "all done\n", done.stderr


def own_certificate(directory, name):
    """Makes a certificate that trusts itself; returns the arguments of the server that uses it."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}")
    names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}"
    run(*made, "-addext", names, "-keyout", str(key), "-out", str(certificate))
    return "--tls-cert", str(certificate), "--tls-key", str(key)


def test_a_renewed_certificate_is_used_and_open_connections_stay(host, tmp_path):
    files = own_certificate(tmp_path, "first")
    server = Server("--domain", DOMAIN, *files, "--tls-listen", "127.0.0.1:8443", "--redirect-listen", "none")
    try:
        first = ssl.get_server_certificate(("127.0.0.1", 8443))
        context = ssl._create_unverified_context()
        kept = context.wrap_socket(socket.create_connection(("127.0.0.1", 8443)), server_hostname=f"api.{DOMAIN}")
        (tmp_path / "certificate.pem").write_text("half")
        own_certificate(tmp_path, "second")
        deadline = time.monotonic() + 60
        while ssl.get_server_certificate(("127.0.0.1", 8443)) == first:
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.5)
        kept.sendall(f"GET /health HTTP/1.1\r\nHost: api.{DOMAIN}\r\nConnection: close\r\n\r\n".encode())
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    finally:
        server.stop()


def test_the_doctor_is_a_client_of_the_domain(server):
    findings = domain_findings(server.data)
    assert {check.removeprefix("domain "): finding["status"] for check, finding in findings.items()} == {
        "names": "ok", "certificate": "ok", "HTTP/2": "ok", "websockets": "ok", "resets": "ok",
    }, findings
    missing = domain_findings(server.data, "--domain", "elsewhere.invalid")
    assert missing["domain names"]["status"] == "failure" and "wildcard record" in missing["domain names"]["remedy"]


def test_quickstart_sets_a_domain_up(server, tmp_path):
    """Beside the server of the other tests, so with another address and port."""
    data, domain = tmp_path / "data", "trial.internal"
    listen = ("--listen", "127.0.0.2:3000", "--tls-listen", "127.0.0.2:8443", "--dns-listen", "127.0.0.2:53")
    listen += ("--layers-dir", os.environ["COFFERDAM_LAYERS"])
    quickstart = (os.environ["COFFERDAM_BIN"], "quickstart", "--data-dir", str(data), "--domain", domain, *listen)
    resolver = pathlib.Path("/etc/resolv.conf")
    before = resolver.read_text()
    try:
        said = run(*quickstart)
        exports = dict(re.findall(r"^ *export (\w+)=(\S+)$", said, re.MULTILINE))
        assert exports["E2B_DOMAIN"] == f"{domain}:8443" and "E2B_API_URL" not in exports, said
        command = next(line for line in said.splitlines() if "/etc/resolv.conf" in line)
        run("sh", "-c", command)
        findings = domain_findings(data)
        assert {finding["status"] for finding in findings.values()} == {"ok"}, findings
        program = "from e2b import Sandbox\nprint(Sandbox.create().commands.run('echo hello').stdout)"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")} | exports
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == "hello", done.stderr
        # Names of the other server still resolve.
        assert fetch(f"https://api.{DOMAIN}/health").status < 300
        assert f"api.{domain} and others resolve" in run(*quickstart)
    finally:
        resolver.write_text(before)
        if (data / "server.json").exists():
            stop(data, json.loads((data / "server.json").read_text()))


def stop(data, note):
    """Kills the sandboxes of a server, then stops it."""
    admin = {"X-Admin-Token": (data / "admin-token").read_text().strip()}
    for sandbox in json.load(fetch(note["url"] + "/v2/sandboxes", **admin)):
        request = urllib.request.Request(f"{note['url']}/sandboxes/{sandbox['sandboxID']}", headers=admin, method="DELETE")
        urllib.request.urlopen(request, timeout=30)
    os.kill(note["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 30
    while pathlib.Path(f"/proc/{note['pid']}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
