"""Interrupted uploads of files for builds continue where they stopped: by plain HTTP, and by our own CLI."""

import gzip
import hashlib
import io
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
import uuid

import pytest
from conftest import options_of
from e2b import Sandbox
from server import Server

MIB = 1 << 20


def fresh(what="up"):
    return f"{what}-{uuid.uuid4().hex[:8]}"


def archive_of(name, content):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1)


def request(method, url, body=None, **headers):
    """The status, and the Range header with the bytes received so far. (308 is no redirect here.)"""
    asked = urllib.request.Request(url, body, headers, method=method)
    try:
        answer = urllib.request.urlopen(asked, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    answer.read()
    return answer.status, answer.headers.get("Range")


@pytest.fixture
def own_server():
    server = Server("--slots", "1", "--pool", "0")
    yield server
    server.stop()


def test_an_interrupted_upload_is_continued(own_server):
    server, options = own_server, options_of(own_server)
    content = os.urandom(3 * MIB)
    archive = archive_of("blob", content)
    name = fresh()
    asked = server.call("POST", "/v3/templates", {"name": name})[2]
    template, hash = asked["templateID"], hashlib.sha256(archive).hexdigest()
    link = lambda: server.call("GET", f"/templates/{template}/files/{hash}")[2]
    url, other = link()["url"], link()["url"]
    assert request("HEAD", url) == (308, None), "nothing is here"

    half = len(archive) // 2
    host, port = server.url.removeprefix("http://").split(":")
    broken = socket.create_connection((host, int(port)))
    path = url.removeprefix(server.url)
    head = f"PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(archive)}\r\n\r\n"
    broken.sendall(head.encode() + archive[:half])
    until = time.monotonic() + 20
    while request("HEAD", url) != (308, f"bytes=0-{half - 1}"):
        assert time.monotonic() < until
    assert request("HEAD", other) == (308, None), "it belongs to its link"
    assert link()["present"] is False, "half an archive is none"

    # The server may not have noticed that the first connection is dead: the newest one wins.
    total = len(archive)
    assert request("PUT", url, b"x", **{"Content-Range": f"bytes {half + 1}-{half + 1}/{total}"}) == (416, f"bytes=0-{half - 1}")
    assert request("PUT", url, b"", **{"Content-Range": f"bytes */{total}"}) == (308, f"bytes=0-{half - 1}")
    assert request("PUT", url, archive[half : half + 10], **{"Content-Range": f"bytes {half}-{half + 9}/{total}"}) == (308, f"bytes=0-{half + 9}")
    broken.close()
    server.crash()
    server.restart()
    assert request("HEAD", url) == (308, f"bytes=0-{half + 9}"), "a new server goes on, too"
    assert request("PUT", url, archive[half:], **{"Content-Range": f"bytes {half}-{total - 1}/{total}"}) == (200, None)
    assert request("HEAD", url) == (200, None) and link()["present"] is True
    for bad in ("bytes 5-1/10", "bytes 0-10/10", "items 0-1/2"):
        assert request("PUT", other, b"x", **{"Content-Range": bad})[0] == 400, bad
    assert request("HEAD", url.replace("upload=", "upload=0"))[0] == 403
    assert request("PUT", other, b"x", **{"Content-Range": f"bytes 0-0/{17 << 30}"})[0] == 413

    steps = [{"type": "COPY", "args": ["blob", "/srv/blob", "", ""], "filesHash": hash}]
    start = f"/v2/templates/{template}/builds/{asked['buildID']}"
    assert server.call("POST", start, {"fromImage": "e2bdev/base", "steps": steps})[0] == 202
    while (report := server.call("GET", start.removeprefix("/v2") + "/status")[2])["status"] == "building":
        time.sleep(0.05)
    assert report["status"] == "ready", report
    with Sandbox.create(name, **options) as sandbox:
        assert sandbox.files.read("/srv/blob", format="bytes") == content


class Cutter:
    """A TCP proxy that closes each of the first uploading connections after a number of bytes."""

    def __init__(self, url, cuts, after):
        host, port = url.removeprefix("http://").split(":")
        self.there = (host, int(port))
        self.cuts, self.after = cuts, after
        self.uploaded = 0
        self.uploads = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.there)
            threading.Thread(target=self.back, args=(far, near), daemon=True).start()
            threading.Thread(target=self.forth, args=(near, far), daemon=True).start()

    @staticmethod
    def back(far, near):
        try:
            while piece := far.recv(1 << 16):
                near.sendall(piece)
        except OSError:
            pass
        near.close()

    def forth(self, near, far):
        """Whether a request is an upload, by its first line. A connection carries several requests."""
        passed = None
        try:
            while piece := near.recv(1 << 16):
                if b"PUT /cofferdam/v1/build-files/" in piece:
                    found = re.search(rb"(?i)content-range: (.*?)\r\n", piece)
                    self.uploads.append(found[1].decode() if found else None)
                    passed = 0 if len(self.uploads) <= self.cuts else None
                if self.uploads:
                    self.uploaded += len(piece)
                far.sendall(piece)
                if passed is not None:
                    passed += len(piece)
                    if passed > self.after:
                        break
        except OSError:
            pass
        for each in (near, far):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


@pytest.mark.parametrize("cuts", [0, 3])
def test_our_cli_continues_uploads_after_lost_connections(server, tmp_path, cuts):
    content = os.urandom(8 * MIB)
    (tmp_path / "blob").write_bytes(content)
    (tmp_path / "Dockerfile").write_text("FROM e2bdev/base\nCOPY blob /srv/blob\n")
    name = fresh("cut")
    network = Cutter(server.url, cuts, 2 * MIB)
    try:
        environment = os.environ | server.environment() | {"E2B_API_URL": network.url}
        words = ["template", "build", str(tmp_path), "--name", name, "--data-dir", str(server.data)]
        done = subprocess.run([os.environ["COFFERDAM_BIN"], *words], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr[-4000:]
    finally:
        network.close()
    assert len(network.uploads) == cuts + 1, network.uploads
    assert network.uploads[0] is None and all(network.uploads[1:]), "the first is a plain PUT"
    begins = [int(re.match(r"bytes (\d+)-", each)[1]) for each in network.uploads[1:]]
    assert begins == sorted(set(begins)) and (not begins or begins[0] > MIB), begins
    # Only what was in flight when a connection broke is sent again.
    assert network.uploaded < len(content) + (cuts + 1) * MIB, network.uploaded
    with Sandbox.create(name) as sandbox:
        assert sandbox.commands.run("sha256sum /srv/blob").stdout.split()[0] == hashlib.sha256(content).hexdigest()
