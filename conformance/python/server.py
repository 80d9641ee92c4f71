"""A real server for tests, with a data directory of its own and a free port. Stopping it checks that nothing is left on the host.

`cargo xtask conformance` names the binary, envd and the layer store by environment variables.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import urllib.parse
import urllib.request

import contract
import host_state

# The engine that runs the sandboxes.
ENGINE = os.environ.get("COFFERDAM_ENGINE", "container")


class Server:
    def __init__(self, *options, prefix=(), data=None, trusting=False, kept=False):
        """`trusting` gives sandboxes the certificate authorities that this host trusts, so that package managers work in them. The templates
        of a `kept` server are not deleted at its end."""
        self.kept = kept
        self.dir = tempfile.TemporaryDirectory(prefix="cofferdam-test-")
        self.data = pathlib.Path(data or pathlib.Path(self.dir.name) / "data")
        self.options = options if trusting else (*options, "--sandbox-ca", "none")
        self.prefix = prefix
        self.process = None
        self.url = None
        self.key = None
        self.start()

    def start(self, listen="127.0.0.1:0"):
        command = [
            *self.prefix, os.environ["COFFERDAM_BIN"], "serve", "--data-dir", str(self.data), "--listen", listen,
            "--layers-dir", os.environ["COFFERDAM_LAYERS"], "--envd", os.environ["COFFERDAM_ENVD"], *self.options,
        ]
        self.log = open(pathlib.Path(self.dir.name) / "log", "ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), self.tail()
        self.url = line.removeprefix("listening on ").strip()
        if self.key is None:
            self.key = self.make_key("tests")

    def tail(self):
        return (pathlib.Path(self.dir.name) / "log").read_text()[-4000:]

    @property
    def admin_token(self):
        return (self.data / "admin-token").read_text().strip()

    def call(self, method, path, body=None, headers=None):
        """Returns status, headers and decoded body, also of error responses."""
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        headers = {"X-API-Key": self.key or "", "Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        raw = answer.read()
        contract.check(method, self.url + path, headers, answer.status, answer.headers, raw)
        try:
            decoded = json.loads(raw)
        except ValueError:
            decoded = raw
        return answer.status, answer.headers, decoded

    def make_key(self, name):
        admin = {"X-Admin-Token": self.admin_token}
        _, _, teams = self.call("GET", "/teams", headers=admin)
        status, _, key = self.call("POST", f"/admin/teams/{teams[0]['teamID']}/api-keys", {"name": name}, admin)
        assert status == 201, key
        return key["key"]

    def cli(self, *words, with_errors=False):
        """Runs our own CLI against this server; returns its output, and what it tells on standard error if asked for."""
        environment = os.environ | self.environment()
        command = [os.environ["COFFERDAM_BIN"], *words, "--data-dir", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (words, done.stderr[-4000:])
        return done.stdout + (done.stderr if with_errors else "")

    def build(self, recipe):
        """Builds a recipe of `templates/`."""
        words = ("template", "build", str(pathlib.Path(os.environ["COFFERDAM_RECIPES"]) / recipe))
        try:
            self.cli(*words)
        except AssertionError as failure:
            # In emulation the interpreter's build exceeds the time limit of builds. Its finished steps are cached.
            if ENGINE != "microvm" or "build timed out" not in str(failure):
                raise
            self.cli(*words)

    def environment(self):
        return {"E2B_API_KEY": self.key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}

    def sandboxes(self):
        """All sandboxes, page by page."""
        found, token = [], ""
        while True:
            _, headers, page = self.call("GET", f"/v2/sandboxes?nextToken={token}" if token else "/v2/sandboxes")
            found += page
            token = headers.get("X-Next-Token")
            if not token:
                return found

    def crash(self):
        """Kills the server with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def restart(self):
        self.start(listen=self.url.removeprefix("http://"))

    def delete_snapshots(self):
        for snapshot in self.call("GET", "/snapshots")[2]:
            status, _, body = self.call("DELETE", "/templates/" + urllib.parse.quote(snapshot["snapshotID"], safe=""))
            assert status == 204, body

    def delete_templates(self):
        for template in self.call("GET", "/templates")[2]:
            if any("/" in name for name in template["names"]):
                status, _, body = self.call("DELETE", f"/templates/{template['templateID']}")
                assert status == 204, body

    def stop(self):
        for sandbox in self.sandboxes():
            status, _, body = self.call("DELETE", f"/sandboxes/{sandbox['sandboxID']}")
            assert status in (204, 404), body
        self.delete_snapshots()
        if not self.kept:
            self.delete_templates()
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0, self.tail()
        self.process.stdout.close()
        self.log.close()
        self.assert_nothing_left()
        self.dir.cleanup()

    @property
    def home(self):
        """The engine's directory in the data directory."""
        return self.data / "microvm" if ENGINE == "microvm" else self.data

    def assert_nothing_left(self):
        for home in filter(pathlib.Path.is_dir, [self.data, self.data / "microvm"]):
            assert not list((home / "sandboxes").iterdir())
            assert self.kept or not list((home / "snapshots").iterdir()), self.tail()
            assert not host_state.mounts(home)
            assert not host_state.processes(home)
            assert not host_state.dumps(home)
            assert not host_state.groups(home)
            assert not host_state.settled(lambda: host_state.serving(home))
        # The kernel detaches a loop device after its last unmount, which may be a moment later.
        assert not host_state.settled(lambda: host_state.loop_devices(self.data))
