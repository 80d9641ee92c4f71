"""A certificate by ACME from pebble, proven by DNS: at a name server (knot) that takes updates, and by a program."""

import json
import os
import pathlib
import signal
import socket
import ssl
import stat
import subprocess
import time

import pytest

from domain import run
from server import Server

ZONE = "acme.internal"
ADDRESS = "127.0.0.5"
DNS_PORT, ACME_PORT, TLS_PORT = 5300, 14000, 8444
SECRET = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
# Long enough for a start, short enough to see a renewal.
LIFETIME = 45


def wait_for(port, process, log):
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as link:
            if link.connect_ex((ADDRESS, port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def started(directory, name, words, port, **more):
    log = directory / f"{name}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, **more)
    wait_for(port, process, log)
    return process


@pytest.fixture(scope="module")
def knot(host, tmp_path_factory):
    directory = tmp_path_factory.mktemp("knot")
    (directory / f"{ZONE}.zone").write_text(f"$ORIGIN {ZONE}.\n@ 60 SOA ns hostmaster 1 60 60 60 60\n@ 60 NS ns\nns 60 A {ADDRESS}\n* 60 A 127.0.0.1\n")
    (directory / "knot.conf").write_text(f"""
server:
  listen: {ADDRESS}@{DNS_PORT}
  rundir: {directory}
database:
  storage: {directory}
key:
  - id: cofferdam
    algorithm: hmac-sha256
    secret: {SECRET}
acl:
  - id: update
    key: cofferdam
    action: update
zone:
  - domain: {ZONE}
    storage: {directory}
    acl: update
    zonefile-sync: -1
    journal-content: none
""")
    process = started(directory, "knot", ["knotd", "-c", str(directory / "knot.conf")], DNS_PORT)
    yield process
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def pebble(knot, tmp_path_factory):
    """Returns the options by which a server uses it."""
    directory = tmp_path_factory.mktemp("pebble")
    key, certificate, config = (directory / name for name in ("key.pem", "certificate.pem", "config.json"))
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=pebble", "-addext", f"subjectAltName=IP:{ADDRESS}",
            "-addext", "basicConstraints=critical,CA:FALSE")
    run(*made, "-keyout", str(key), "-out", str(certificate))
    listen = {"listenAddress": f"{ADDRESS}:{ACME_PORT}", "managementListenAddress": f"{ADDRESS}:15000"}
    files = {"certificate": str(certificate), "privateKey": str(key), "httpPort": 5002, "tlsPort": 5001}
    config.write_text(json.dumps({"pebble": listen | files | {"certificateValidityPeriod": LIFETIME}}))
    words = ["pebble", "-config", str(config), "-dnsserver", f"{ADDRESS}:{DNS_PORT}", "-strict"]
    environment = os.environ | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    process = started(directory, "pebble", words, ACME_PORT, env=environment)
    yield ["--acme-directory", f"https://{ADDRESS}:{ACME_PORT}/dir", "--acme-ca", str(certificate), "--acme-wait", "0"]
    process.terminate()
    process.wait(timeout=20)


def records():
    said = run("kdig", f"@{ADDRESS}", "-p", str(DNS_PORT), "+short", "TXT", f"_acme-challenge.{ZONE}")
    return said.split()


def names(pem):
    done = subprocess.run(["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem, capture_output=True, text=True)
    return done.stdout


def served():
    return ssl.get_server_certificate(("127.0.0.1", TLS_PORT))


def server_with(pebble, *options):
    listen = ("--domain", ZONE, "--acme", "operator@example.org", "--tls-listen", f"127.0.0.1:{TLS_PORT}")
    return Server(*listen, *pebble, *options)


def test_a_wildcard_certificate_is_obtained_kept_and_renewed(pebble, tmp_path):
    key = tmp_path / "key"
    key.write_text(f"hmac-sha256:cofferdam:{SECRET}\n")
    server = server_with(pebble, "--acme-dns-server", f"{ADDRESS}:{DNS_PORT}", "--acme-dns-key", str(key))
    try:
        first = served()
        assert f"DNS:*.{ZONE}" in names(first) and f"DNS:{ZONE}" in names(first)
        assert records() == [], "the record is withdrawn"
        kept = server.data / "tls" / ZONE
        for name in ("acme.pem", "acme-account.json"):
            assert stat.S_IMODE((kept / name).stat().st_mode) == 0o600
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=30)
        server.process.stdout.close()
        server.log.close()
        server.start()
        assert served() == first, "no other is asked for at a restart"
        deadline = time.monotonic() + 2 * LIFETIME
        while served() == first:
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.5)
    finally:
        server.stop()


def test_a_program_may_publish_the_record(pebble, tmp_path):
    hook, calls = tmp_path / "hook", tmp_path / "calls"
    hook.write_text(f"""#!/bin/sh
set -e
echo "$1 $2" >> {calls}
case "$1" in publish) change="add $2. 60 TXT $3";; withdraw) change="del $2. TXT $3";; esac
printf 'server {ADDRESS} {DNS_PORT}\\nzone {ZONE}.\\n%s\\nsend\\n' "$change" | knsupdate -y hmac-sha256:cofferdam:{SECRET}
""")
    hook.chmod(0o755)
    server = server_with(pebble, "--acme-hook", str(hook))
    try:
        assert f"DNS:*.{ZONE}" in names(served())
        record = f"_acme-challenge.{ZONE}"
        assert calls.read_text().splitlines() == 2 * [f"publish {record}"] + 2 * [f"withdraw {record}"]
    finally:
        server.stop()


@pytest.mark.parametrize("options, reason", [
    (["--acme-hook", "/bin/false"], "/bin/false publish"),
    (["--acme-hook", "/bin/true"], f"_acme-challenge.{ZONE}"),
    (["--acme-dns-server", f"{ADDRESS}:{DNS_PORT}"], "refused the update with"),
    ([], "--acme-dns-server"),
])
def test_failures_are_told_at_the_start(pebble, tmp_path, options, reason):
    listen = ("--listen", "127.0.0.1:0", "--domain", ZONE, "--acme", "operator@example.org", "--tls-listen", "127.0.0.1:0")
    words = [os.environ["COFFERDAM_BIN"], "serve", "--data-dir", str(tmp_path / "data"), *listen, *pebble, *options]
    parts = ["--layers-dir", os.environ["COFFERDAM_LAYERS"], "--envd", os.environ["COFFERDAM_ENVD"]]
    done = subprocess.run([*words, *parts], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and reason in done.stderr.splitlines()[-1], done.stderr[-2000:]
    assert pathlib.Path(tmp_path / "data").exists()
