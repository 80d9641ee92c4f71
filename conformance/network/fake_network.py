"""A fake internet for one test run: a second network namespace behind a veth pair, with servers at public addresses.

The test run is itself in a network namespace (`unshare --net`), which plays the host. Both disappear with their processes; the machine's
own network is not touched.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import secure_web

HOST = "203.0.113.1"
PUBLIC = "198.51.100.7"
PUBLIC6 = "2001:db8:1::7"
RESOLVER = "198.51.100.53"
PRIVATE = "10.9.9.9"
METADATA = "169.254.169.254"
# Domain of a server; names below it lead to the host.
BOXES = "boxes.example.test"
NAME = "files.example.test"
REBINDING = "rebinding.example.test"
# Port of an echo server at PUBLIC.
ECHO = 7777
# Ports of the SOCKS5 proxies at PUBLIC and PRIVATE, and of that at PUBLIC within TLS.
PROXY = 1080
TLS_PROXY = 1443
PROXY_USER = "tester"
PROXY_PASSWORD = "canary-proxy-4711"


def run(*command):
    subprocess.run(command, check=True)


class World:
    def __init__(self):
        links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout
        assert "lo: <LOOPBACK>" in links and links.count("\n") == 1, "run me under `unshare --net`"
        self.certificates = tempfile.TemporaryDirectory(prefix="cofferdam-test-certificates-")
        directory = pathlib.Path(self.certificates.name)
        # The authority of the servers of the fake internet.
        self.authority = secure_web.make_certificates(directory)
        self.directory = directory
        program = pathlib.Path(__file__).with_name("fake_internet.py")
        self.internet = subprocess.Popen(
            ["unshare", "--net", "--mount", sys.executable, str(program), str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        assert self.internet.stdout.readline() == "namespace\n"
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "h0", "type", "veth", "peer", "name", "i0", "netns", str(self.internet.pid))
        run("ip", "addr", "add", f"{HOST}/24", "dev", "h0")
        run("ip", "addr", "add", "2001:db8::1/64", "dev", "h0", "nodad")
        run("ip", "link", "set", "h0", "up")
        self.internet.stdin.write("go\n")
        self.internet.stdin.flush()
        assert self.internet.stdout.readline() == "serving\n"
        run("ip", "route", "add", "default", "via", "203.0.113.2")
        run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")

    def proxied(self, kind="public"):
        """What a SOCKS5 proxy has been asked to connect to so far."""
        lines = (self.directory / f"proxy-{kind}.log").read_text().splitlines()
        return [line.split("connected to ")[1] for line in lines if "connected to " in line]

    def close(self):
        # Only so does it end its proxies.
        self.internet.stdin.close()
        self.internet.wait()
        self.certificates.cleanup()


assert os.geteuid() == 0
