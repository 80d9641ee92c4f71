"""A server with a domain of its own and TLS, and a host on which its names resolve and its certificate is trusted.

It needs network and mount namespaces of its own (`unshare --net --mount`), in which this changes `/etc` and takes the ports 53, 80 and 443.
"""

import json
import os
import pathlib
import re
import subprocess
import urllib.request

from server import Server

DOMAIN = "sandboxes.internal"


def prepare_host():
    """Gives this process a writable copy of the host's configuration, and our server as its resolver."""
    for kind in ("net", "mnt"):
        own, parents = (os.readlink(f"/proc/{process}/ns/{kind}") for process in ("self", os.getppid()))
        assert own != parents, "run it in `unshare --net --mount`"
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    for directory in ("/etc", "/usr/local/share/ca-certificates"):
        name = directory.replace("/", "-")
        upper, work = (pathlib.Path(f"/mnt/{kind}{name}") for kind in ("upper", "work"))
        upper.mkdir()
        work.mkdir()
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={directory},upperdir={upper},workdir={work}", directory)
    resolver = pathlib.Path("/etc/resolv.conf")
    resolver.unlink(missing_ok=True)
    resolver.write_text("nameserver 127.0.0.1\n")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def fetch(url, data=None, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30)


def domain_findings(data, *options):
    doctor = (os.environ["COFFERDAM_BIN"], "doctor", "--json", "--data-dir", str(data), *options)
    done = subprocess.run(doctor, capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    return {finding["check"]: finding for finding in found if finding["check"].startswith("domain")}


def server():
    """Prepares the host and starts a server on it whose authority this process trusts."""
    prepare_host()
    server = DomainServer()
    os.environ.update(server.trust())
    return server


class DomainServer(Server):
    """Clients know its domain and their key, nothing else."""

    def __init__(self, *options, **more):
        # Queries of sandboxes would come back to this server.
        super().__init__("--domain", DOMAIN, "--tls", "self-signed", "--dns-listen", "127.0.0.1:53", *options, **more)
        self.tls_url = self.process.stdout.readline().removeprefix("listening on ").strip()

    def trust(self):
        """Does what `cofferdam tls trust` says; returns the environment variables for programs with authorities of their own."""
        said = run(os.environ["COFFERDAM_BIN"], "tls", "trust", "--data-dir", str(self.data))
        lines = [line.split("#")[0] for line in said.splitlines() if line.startswith("export ")]
        return dict(re.findall(r"(\w+)=(\S+)", " ".join(lines)))

    def environment(self):
        return {"E2B_API_KEY": self.key, "E2B_DOMAIN": DOMAIN}
