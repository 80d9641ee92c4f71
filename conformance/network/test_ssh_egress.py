"""Connections that SSH clients make through a sandbox (`ssh -L`, `-D`, `-W`) have the sandbox's rules."""

import subprocess

import pytest
from e2b import Sandbox

from fake_network import NAME, PUBLIC, RESOLVER
from server import Server


@pytest.fixture(scope="module")
def ssh_server(world):
    server = Server("--dns", f"{RESOLVER}:53", "--ssh-listen", "127.0.0.1:0")
    yield server
    server.stop()


def test_forwarded_connections_have_the_rules_of_the_sandbox(ssh_server, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    ssh_server.cli("ssh-key", "add", f"{key}.pub", "--name", "tests")
    port = (ssh_server.data / "ssh-address").read_text().rsplit(":", 1)[1]
    options = {"api_key": ssh_server.key, "api_url": ssh_server.url, "sandbox_url": ssh_server.url}
    sandbox = Sandbox.create(network={"allow_out": [NAME], "deny_out": ["0.0.0.0/0"]}, **options)
    try:
        def get(host):
            line = ["ssh", "-F", "none", "-i", key, "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
                    "-o", "LogLevel=ERROR", "-p", port, "-W", f"{host}:80", f"{sandbox.sandbox_id}@127.0.0.1"]
            request = f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
            return subprocess.run(line, input=request, capture_output=True, timeout=30).stdout

        assert b"hello" in get(NAME)
        assert get("203.0.113.2") == b"" and get(PUBLIC) == b""
    finally:
        sandbox.kill()
