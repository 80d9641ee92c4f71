"""Behind proxies of Debian's, configured as docs/domain.md says: the SDKs, and the doctor's checks of what proxies break most."""

import http.client
import json
import os
import pathlib
import re
import socket
import subprocess
import time

import pytest
from e2b import Sandbox, Template

from domain import DOMAIN, domain_findings, run
from server import Server
from services import serve

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/domain.md"
PORT = 8443


def snippet(language, files):
    """A configuration of the document, with this test's domain, port and files."""
    text = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    for name, path in files.items():
        assert name in text, name
        text = text.replace(name, str(path))
    text = text.replace("sandboxes.example.org", DOMAIN)
    return re.sub(r"(listen |bind :)443\b", rf"\g<1>{PORT}", text)


def certificate(server, directory):
    """A certificate of the authority that this host trusts; returns its file and the key's."""
    tls = server.data / "tls" / DOMAIN
    key, request, chain, names = (directory / name for name in ("proxy.key", "request", "proxy.crt", "names"))
    names.write_text(f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("openssl", "req", *curve, "-subj", "/CN=proxy", "-keyout", str(key), "-out", str(request))
    authority = ("-CA", str(tls / "authority.crt"), "-CAkey", str(tls / "authority.key"))
    run("openssl", "x509", "-req", "-in", str(request), *authority, "-extfile", str(names), "-out", str(chain))
    return chain, key


def nginx(directory, chain, key, port):
    text = snippet("nginx", {"fullchain.pem": chain, "privkey.pem": key, "127.0.0.1:3000": f"127.0.0.1:{port}"})
    log = directory / "nginx.log"
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log {log}; events {{}}\nhttp {{\naccess_log off;\n"
        + "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + text + "}\n"
    )
    return ["nginx", "-c", str(directory / "nginx.conf"), "-e", str(log)]


def haproxy(directory, chain, key, port):
    both = directory / "both.pem"
    both.write_bytes(chain.read_bytes() + key.read_bytes())
    text = snippet("haproxy", {"fullchain-and-key.pem": both, "127.0.0.1:3001": f"127.0.0.1:{port}"})
    (directory / "haproxy.conf").write_text(text)
    return ["haproxy", "-db", "-f", str(directory / "haproxy.conf")]


PROXIES = {"nginx": nginx, "haproxy": haproxy}


class Proxied:
    """A server behind a proxy. HAProxy connects to the listener for proxies, nginx to that of everybody."""

    def __init__(self, name, authority, directory, *options):
        listen = ("--proxy-listen", "127.0.0.1:3001") if name == "haproxy" else ()
        self.server = Server("--domain", DOMAIN, "--trust-proxy", "127.0.0.1/32", "--forwarded-headers", *listen, *options)
        port = 3001 if name == "haproxy" else int(self.server.url.rsplit(":", 1)[1])
        words = PROXIES[name](directory, *certificate(authority, directory), port)
        with open(directory / "out", "wb") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while not listening():
            assert self.process.poll() is None and time.monotonic() < deadline, (directory / "out").read_text()
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        self.server.stop()


def listening():
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", PORT)) == 0


@pytest.fixture(params=PROXIES)
def proxied(request, server, tmp_path, monkeypatch):
    proxied = Proxied(request.param, server, tmp_path, "--public-url", f"https://api.{DOMAIN}:{PORT}")
    monkeypatch.setenv("E2B_DOMAIN", f"{DOMAIN}:{PORT}")
    monkeypatch.setenv("E2B_API_KEY", proxied.server.key)
    yield proxied
    proxied.stop()


def test_the_sdk_works_through_a_proxy(proxied, tmp_path):
    sandbox = Sandbox.create()
    assert sandbox.sandbox_domain == f"{DOMAIN}:{PORT}"
    assert sandbox.commands.run("echo hello").stdout == "hello\n"
    content = os.urandom(32 << 20)
    sandbox.files.write("big", content)
    assert sandbox.files.read("big", format="bytes") == content
    serve(sandbox, 8000)
    pretended = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "Forwarded": "for=192.0.2.1"}
    host = sandbox.get_host(8000)
    # Not from the address of the proxy, which is believed.
    link = http.client.HTTPSConnection(host, source_address=("127.0.0.77", 0), timeout=30)
    link.request("GET", "/echo", headers=pretended)
    seen = json.load(link.getresponse())["headers"]
    link.close()
    told = {name: value for name, value in seen.items() if "forwarded" in name}
    assert told == {"x-forwarded-for": "127.0.0.77", "x-forwarded-proto": "https", "x-forwarded-host": host}
    sandbox.kill()
    (tmp_path / "copied.txt").write_text("copied")
    template = Template(file_context_path=tmp_path).from_template("base").copy("copied.txt", "/copied.txt")
    Template.build(template, "through-a-proxy", cpu_count=1, memory_mb=512)
    findings = domain_findings(proxied.server.data, "--domain", f"{DOMAIN}:{PORT}")
    assert {finding["status"] for finding in findings.values()} == {"ok"}, findings


@pytest.mark.parametrize("name", PROXIES)
def test_links_are_by_https_behind_a_proxy_that_is_trusted(name, server, tmp_path):
    proxied = Proxied(name, server, tmp_path)
    try:
        status, _, made = proxied.server.call("POST", "/v3/templates", {"name": "linked"})
        assert status < 300, made
        path = f"/templates/{made['templateID']}/files/{'a' * 64}"
        key = f"X-API-Key: {proxied.server.key}"
        answer = run("curl", "--silent", "--fail", "--header", key, f"https://api.{DOMAIN}:{PORT}{path}")
        assert json.loads(answer)["url"].startswith(f"https://api.{DOMAIN}:{PORT}/"), answer
    finally:
        proxied.stop()
