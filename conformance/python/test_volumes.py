"""Volumes: their names, their content through the SDKs, and sandboxes that share them."""

import contextlib
import io
import os
import re
import threading
import time
import uuid

import httpx
import pytest
from e2b import AsyncVolume, Sandbox, Volume
from e2b.exceptions import NotFoundException

from server import Server

CHUNK = 1 << 20


@pytest.fixture(autouse=True)
def content_host(server, monkeypatch):
    monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)


@pytest.fixture
def volume():
    volume = Volume.create(f"v-{uuid.uuid4().hex[:12]}")
    yield volume
    Volume.destroy(volume.volume_id)


class Stream(io.RawIOBase):
    """A file of unknown length that is made of chunks."""

    def __init__(self, chunks):
        self.chunks = chunks

    def readable(self):
        return True

    def read(self, size=-1):
        return next(self.chunks, b"")


def run(sandbox, command, **options):
    return sandbox.commands.run(command, **options).stdout


def test_volumes_are_listed_connected_to_and_destroyed():
    name = f"Name_{uuid.uuid4().hex[:8]}"
    volume = Volume.create(name)
    assert volume.name == name and uuid.UUID(volume.volume_id)
    with pytest.raises(Exception, match=f"Volume with name '{name}' already exists"):
        Volume.create(name)
    for bad in ("", "a b", "a/b", "ä", "x" * 251):
        with pytest.raises(Exception, match="Invalid volume name"):
            Volume.create(bad)
    assert volume.volume_id in [each.volume_id for each in Volume.list()]
    assert Volume.get_info(volume.volume_id).name == name
    again = Volume.connect(volume.volume_id)
    again.write_file("a", b"1")
    assert volume.read_file("a") == "1"
    assert Volume.destroy(volume.volume_id) is True
    assert Volume.destroy(volume.volume_id) is False
    for missing in (volume.volume_id, str(uuid.uuid4()), "no-id", "a b/c"):
        with pytest.raises(NotFoundException):
            Volume.get_info(missing)
    with pytest.raises(Exception):
        again.read_file("a")


def test_content_is_written_read_listed_and_removed(volume):
    entry = volume.write_file("dir/with space/a+b ü.txt", b"hello", force=True)
    assert (entry.path, entry.size, entry.mode, entry.uid, entry.gid) == ("/dir/with space/a+b ü.txt", 5, 0o644, 1000, 1000)
    assert volume.read_file("/dir/with space/a+b ü.txt") == "hello"
    assert volume.write_file("empty", b"").size == 0
    assert bytes(volume.read_file("empty", format="bytes")) == b""
    with pytest.raises(Exception, match="409|exists"):
        volume.write_file("empty", b"more")
    assert volume.write_file("empty", b"more", force=True, mode=0o600, uid=0, gid=5).mode == 0o600
    made = volume.make_dir("d1")
    assert made.type.value == "directory" and made.mode == 0o755
    with pytest.raises(Exception):
        volume.make_dir("d1")
    with pytest.raises(Exception):
        volume.make_dir("x/y/z")
    volume.make_dir("x/y/z", force=True)
    assert sorted(entry.path for entry in volume.list("/")) == ["/d1", "/dir", "/empty", "/x"]
    assert [entry.path for entry in volume.list("x", depth=5)] == ["/x/y", "/x/y/z"]
    changed = volume.update_metadata("d1", uid=33, gid=34, mode=0o711)
    assert (changed.uid, changed.gid, changed.mode) == (33, 34, 0o711)
    assert volume.exists("x/y") and not volume.exists("y")
    volume.remove("x")
    assert not volume.exists("x")
    for call in (lambda: volume.read_file("gone"), lambda: volume.remove("gone"), lambda: volume.list("gone"), lambda: volume.get_info("gone")):
        with pytest.raises(NotFoundException):
            call()


def test_a_stream_of_unknown_length_arrives_whole(volume):
    def chunks():
        for index in range(40):
            yield bytes([index]) * CHUNK

    volume.write_file("big", Stream(chunks()))
    info = volume.get_info("big")
    assert info.size == 40 * CHUNK
    received = 0
    for chunk in volume.read_file("big", format="stream"):
        received += len(chunk)
    assert received == 40 * CHUNK


def test_a_part_of_a_file_is_read_and_tokens_are_checked(server, volume):
    volume.write_file("file", b"0123456789")
    url = f"{server.url}/volumecontent/{volume.volume_id}/file"
    token = {"Authorization": f"Bearer {volume.token}"} if hasattr(volume, "token") else {"X-API-Key": os.environ["E2B_API_KEY"]}
    part = httpx.get(url, params={"path": "file"}, headers={**token, "Range": "bytes=3-5"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "345", "bytes 3-5/10")
    assert httpx.get(url, params={"path": "file"}, headers={**token, "Range": "bytes=20-"}).status_code == 416
    assert httpx.head(url, params={"path": "file"}, headers=token).headers["content-length"] == "10"
    key = {"Authorization": f"Bearer {os.environ['E2B_API_KEY']}"}
    assert httpx.get(url, params={"path": "file"}, headers=key).text == "0123456789"
    other = Volume.create(f"o-{uuid.uuid4().hex[:12]}")
    fresh = httpx.get(f"{server.url}/volumes/{other.volume_id}", headers={"X-API-Key": os.environ["E2B_API_KEY"]}).json()["token"]
    for headers, status in [
        ({}, 401),
        ({"Authorization": "Bearer nonsense"}, 401),
        ({"Authorization": f"Bearer {fresh[:-1]}0"}, 401),
        ({"Authorization": f"Bearer {fresh}"}, 403),
    ]:
        answer = httpx.get(url, params={"path": "file"}, headers=headers)
        if status == 401 and "nonsense" not in str(headers) and headers:
            # The last digit may have been a 0.
            assert answer.status_code in (401, 403)
            continue
        assert (answer.status_code, answer.json()["code"]) == (status, str(status)), answer.text
    assert httpx.get(url, params={"path": ""}, headers=key).status_code == 400
    Volume.destroy(other.volume_id)


async def test_the_asynchronous_client_has_the_same(server, monkeypatch):
    volume = await AsyncVolume.create(f"a-{uuid.uuid4().hex[:12]}")
    await volume.write_file("f", b"text")
    assert await volume.read_file("f") == "text"
    assert [entry.name for entry in await volume.list("/")] == ["f"]
    assert await AsyncVolume.destroy(volume.volume_id) is True


@pytest.mark.container
def test_sandboxes_share_a_volume_and_its_locks(volume):
    mounts = {"/data": volume}
    one, two = Sandbox.create(volume_mounts=mounts), Sandbox.create(volume_mounts={"/srv/shared/deep": volume.name})
    try:
        assert " /data " in run(one, "cat /proc/self/mountinfo")
        run(one, "echo from one > /data/a && mkdir /data/d && mv /data/a /data/d/b")
        assert run(two, "cat /srv/shared/deep/d/b") == "from one\n"
        # The API sees the same owners.
        assert volume.get_info("d/b").uid == 1000
        volume.write_file("api", b"from the api")
        assert run(two, "cat /srv/shared/deep/api; stat -c %u:%g:%a /srv/shared/deep/api") == "from the api1000:1000:644\n"
        run(one, "sudo touch /data/roots")
        assert volume.get_info("roots").uid == 0
        # A lock in one keeps the other out.
        lock = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.{}(f, fcntl.LOCK_EX | {}); print('locked', flush=True); {}"
        for kind in ("flock", "lockf"):
            hold = lock.format(kind, 0, "sys.stdin.read()")
            held = one.commands.run(f'python3 -c "{hold}" /data/lock', background=True, stdin=True, timeout=0)
            for out, _, _ in held:
                if out:
                    break
            attempt = lock.format(kind, "fcntl.LOCK_NB", "0")
            refused = f'python3 -c "{attempt}" /srv/shared/deep/lock 2>&1 || true'
            assert "BlockingIOError" in run(two, refused)
            held.kill()
            granted = f'until python3 -c "{attempt}" /srv/shared/deep/lock 2>/dev/null; do sleep 0.05; done'
            assert run(two, granted, timeout=20) == "locked\n"
    finally:
        one.kill()
        two.kill()


@pytest.mark.container
def test_two_sandboxes_write_to_one_database(volume):
    boxes = [Sandbox.create(volume_mounts={"/data": volume}) for _ in range(2)]
    insert = """
import sqlite3, sys
db = sqlite3.connect("/data/db", timeout=60)
db.execute("create table if not exists t (who text, n integer)")
for n in range(150):
    with db:
        db.execute("insert into t values (?, ?)", (sys.argv[1], n))
"""
    try:
        for box in boxes:
            box.files.write("/tmp/insert.py", insert)
        threads = [threading.Thread(target=run, args=(box, f"python3 /tmp/insert.py {index}"), kwargs={"timeout": 120}) for index, box in enumerate(boxes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check = 'import sqlite3; db = sqlite3.connect("/data/db"); print(db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*) from t").fetchone()[0])'
        assert run(boxes[0], f"python3 -c '{check}'") == "ok 300\n"
    finally:
        for box in boxes:
            box.kill()


@pytest.mark.container
def test_mounts_are_checked_together(server, volume):
    with pytest.raises(Exception) as refused:
        Sandbox.create(volume_mounts={"/a": "missing", "b": volume, "/c/../d": volume, "/proc/x": volume, "": volume})
    text = str(refused.value)
    assert "invalid mounts:\n\t- volume mount #0: volume 'missing' not found" in text
    for reason in ("path must be absolute", "'.' or '..' components", "nothing can be mounted at path '/proc/x'", "path cannot be empty"):
        assert reason in text, text
    body = {"templateID": "base", "volumeMounts": [{"name": volume.name, "path": "/a"}, {"name": volume.name, "path": "/a/"}]}
    answer = httpx.post(f"{server.url}/v2/sandboxes", json=body, headers={"X-API-Key": os.environ["E2B_API_KEY"]})
    assert answer.status_code == 400 and "path '/a' is already used" in answer.text
    with pytest.raises(Exception, match="/etc/passwd"):
        Sandbox.create(volume_mounts={"/etc/passwd": volume})
    # A link of the template leads to a place in the sandbox.
    sandbox = Sandbox.create(volume_mounts={"/bin/deep": volume})
    try:
        run(sandbox, "touch /usr/bin/deep/here")
        assert volume.exists("here")
        assert sandbox.get_info().volume_mounts == [{"name": volume.name, "path": "/bin/deep"}]
    finally:
        sandbox.kill()


@pytest.mark.container
def test_read_only_mounts_and_directories_of_a_volume(server, volume):
    volume.write_file("in/file", b"text", force=True)
    body = {
        "templateID": "base",
        "volumeMounts": [
            {"name": volume.name, "path": "/ro", "readOnly": True},
            {"name": volume.name, "path": "/in", "subPath": "in"},
            {"name": volume.name, "path": "/new", "subPath": "made/now"},
        ],
    }
    answer = httpx.post(f"{server.url}/v2/sandboxes", json=body, headers={"X-API-Key": os.environ["E2B_API_KEY"]}, timeout=60)
    assert answer.status_code == 201, answer.text
    sandbox = Sandbox.connect(answer.json()["sandboxID"])
    try:
        assert run(sandbox, "cat /ro/in/file /in/file; touch /ro/x 2>&1 || true; sudo mount -o remount,rw /ro 2>&1 || true; touch /ro/y 2>&1 || true").count("Read-only file system") >= 2
        run(sandbox, "touch /new/here; ls /in/..")
        assert volume.exists("made/now/here")
        options = run(sandbox, "grep ' /in ' /proc/self/mountinfo")
        assert "nosuid" in options and "nodev" in options, options
    finally:
        sandbox.kill()


@pytest.mark.container
@pytest.mark.parametrize("keeps", ["frozen processes", "a snapshot"])
def test_mounts_survive_pause_resume_and_fork(server, cold_server, cold, volume, keeps, monkeypatch):
    options = cold if keeps == "a snapshot" else {}
    if options:
        monkeypatch.setenv("E2B_VOLUME_API_URL", cold_server.url)
        volume = Volume.create(f"c-{uuid.uuid4().hex[:12]}", **cold)
    sandbox = Sandbox.create(volume_mounts={"/data": volume.name}, **options)
    try:
        program = "import time,os\nf=open('/data/log','a',buffering=1)\nf.write('begun\\n')\nprint('ready',flush=True)\nwhile not os.path.exists('/data/go'): time.sleep(0.05)\nf.write('gone on\\n')\nopen('/tmp/done','w')"
        sandbox.files.write("/tmp/p.py", program)
        handle = sandbox.commands.run("python3 /tmp/p.py", background=True, timeout=0)
        for out, _, _ in handle:
            if out:
                break
        sandbox.pause()
        # Others write meanwhile, also to what it has open.
        volume.write_file("other", b"meanwhile")
        other = Sandbox.create(volume_mounts={"/shared": volume.name}, **options)
        run(other, "echo from another >> /shared/log; chmod 666 /shared/log")
        other.kill()
        sandbox.connect()
        assert run(sandbox, "cat /data/other") == "meanwhile"
        (fork,) = sandbox.fork(count=1)
        run(sandbox, "touch /data/go; until [ -e /tmp/done ]; do sleep 0.05; done", timeout=20)
        run(fork, "until [ -e /tmp/done ]; do sleep 0.05; done", timeout=20)
        assert volume.read_file("log") == "begun\nfrom another\ngone on\ngone on\n"
        fork.kill()
        sandbox.pause(keep_memory=False)
        sandbox.connect()
        assert run(sandbox, "cat /data/other") == "meanwhile"
        snapshot = sandbox.create_snapshot()
        copy = Sandbox.create(snapshot.snapshot_id, **options)
        assert run(copy, "ls /data | wc -l") == "0\n"
        copy.kill()
        sandbox.pause()
        Volume.destroy(volume.volume_id, **options)
        with pytest.raises(Exception, match=volume.name):
            sandbox.connect()
        assert sandbox.get_info().state.value == "paused"
    finally:
        sandbox.kill()


@pytest.mark.container
def test_a_deleted_volume_is_gone_for_those_who_have_it_mounted(volume):
    sandbox = Sandbox.create(volume_mounts={"/data": volume})
    try:
        run(sandbox, "echo x > /data/x")
        assert Volume.destroy(volume.volume_id) is True
        assert run(sandbox, "cat /data/x 2>&1; echo y 2>&1 > /data/y; ls /data 2>&1; true").count("x\n") == 0
        assert run(sandbox, "echo lives") == "lives\n"
    finally:
        sandbox.kill()


@pytest.mark.container
def test_a_limit_holds_for_the_api_and_for_sandboxes(server):
    key = {"X-API-Key": os.environ["E2B_API_KEY"]}
    made = httpx.post(f"{server.url}/volumes", json={"name": f"l-{uuid.uuid4().hex[:12]}", "sizeLimitMB": 16}, headers=key).json()
    url = f"{server.url}/cofferdam/v1/volumes/{made['volumeID']}"
    volume = Volume.connect(made["volumeID"])
    sandbox = Sandbox.create(volume_mounts={"/data": volume})
    try:
        assert httpx.get(url, headers=key).json()["limitEnforced"] is True
        content = httpx.put(
            f"{server.url}/volumecontent/{made['volumeID']}/file", params={"path": "big"}, content=os.urandom(24 << 20),
            headers={"Authorization": f"Bearer {made['token']}"}, timeout=60,
        )
        assert content.status_code == 507, content.text
        assert volume.list("/") == []
        result = run(sandbox, "dd if=/dev/urandom of=/data/big bs=1M count=24 conv=fsync 2>&1 || true")
        assert re.search("Disk quota exceeded|No space left", result), result
        run(sandbox, "rm /data/big; sync")
        assert httpx.patch(url, json={"sizeLimitMB": None}, headers=key).json()["sizeLimitMB"] is None
        run(sandbox, "dd if=/dev/urandom of=/data/big bs=1M count=24 && sync")
        assert httpx.get(url, headers=key).json()["usedBytes"] >= 24 << 20
    finally:
        sandbox.kill()
        Volume.destroy(made["volumeID"])


@pytest.mark.container
def test_an_upload_that_breaks_off_leaves_nothing(server, volume):
    def breaks():
        yield b"x" * CHUNK
        raise RuntimeError("broken off")

    with pytest.raises(Exception, match="broken off"):
        volume.write_file("partial", Stream(breaks()))
    sandbox = Sandbox.create(volume_mounts={"/data": volume})
    try:
        assert run(sandbox, "ls -A /data") == ""
    finally:
        sandbox.kill()


@pytest.mark.container
def test_the_command_line_copies_files_and_volumes(server, tmp_path):
    name = f"cli-{uuid.uuid4().hex[:12]}"
    made = server.cli("volume", "create", name, "--size-limit", "64").strip()
    assert uuid.UUID(made) and name in server.cli("volume", "list")
    tree = tmp_path / "tree"
    (tree / "below" / "deep").mkdir(parents=True)
    (tree / "below" / "deep" / "data").write_bytes(os.urandom(3 << 20))
    script = tree / "run.sh"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)
    server.cli("volume", "cp", "-r", str(tree), f"{name}:/")
    server.cli("volume", "cp", str(script), f"{name}:one/two/script")
    assert "run.sh" in server.cli("volume", "ls", f"{name}:/tree")
    server.cli("volume", "cp", "-r", f"{name}:tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "below" / "deep" / "data").read_bytes() == (tree / "below" / "deep" / "data").read_bytes()
    sandbox = server.cli("sandbox", "create", "--volume", f"{name}:/data", "--volume", f"{name}:/ro:ro").strip()
    try:
        shell = Sandbox.connect(sandbox)
        assert run(shell, "/data/one/two/script") == "ran\n"
        copy = f"{name}-copy"
        server.cli("volume", "snapshot", name, copy)
        run(shell, "rm -r /data/tree && ! touch /ro/x")
        assert "run.sh" in server.cli("volume", "ls", f"{copy}:tree")
        assert "limit: 64 MiB" in server.cli("volume", "show", copy)
        server.cli("volume", "limit", copy, "none")
        assert "limit: none" in server.cli("volume", "show", copy)
    finally:
        server.cli("sandbox", "kill", sandbox)
    server.cli("volume", "delete", name, copy)
    assert name not in server.cli("volume", "list")


@pytest.mark.container
def test_a_killed_server_loses_nothing_that_was_acknowledged(monkeypatch):
    own = Server()
    try:
        monkeypatch.setenv("E2B_VOLUME_API_URL", own.url)
        options = {"api_key": own.key, "api_url": own.url, "sandbox_url": own.url}
        volume = Volume.create("kept", **options)
        gone = Volume.create("gone", **options)
        sandbox = Sandbox.create(volume_mounts={"/data": volume}, **options)
        Sandbox.create(volume_mounts={"/gone": gone}, **options)
        volume.write_file("acknowledged", b"whole")
        begun = threading.Event()

        def slowly():
            yield b"x" * CHUNK
            begun.set()
            while own.process.poll() is None:
                yield b"x"

        def upload():
            with pytest.raises(Exception):
                volume.write_file("unfinished", Stream(slowly()))

        uploading = threading.Thread(target=upload)
        uploading.start()
        begun.wait(timeout=30)
        assert Volume.destroy(gone.volume_id, **options) is True
        own.crash()
        uploading.join()
        own.restart()
        found = Sandbox.connect(sandbox.sandbox_id, **options)
        assert run(found, "ls -A /data; cat /data/acknowledged; echo after > /data/new") == "acknowledged\nwhole"
        assert volume.read_file("new") == "after\n"
        assert [entry.name for entry in volume.list("/")] == ["acknowledged", "new"]
        assert [each.name for each in Volume.list(**options)] == ["kept"]
        found.pause()
        found.connect()
        assert run(found, "cat /data/new") == "after\n"
        found.kill()
    finally:
        own.stop()


@pytest.mark.container
@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_copy_does_not_wait_for_a_lock_that_is_taken(cold_server, cold, monkeypatch, kind):
    monkeypatch.setenv("E2B_VOLUME_API_URL", cold_server.url)
    volume = Volume.create(f"k-{uuid.uuid4().hex[:12]}", **cold)
    hold = f'python3 -c "import fcntl,time; f=open(\'/data/lock\',\'w\'); fcntl.{kind}(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(1000)"'

    def holder():
        sandbox = Sandbox.create(volume_mounts={"/data": volume}, **cold)
        for out, _, _ in sandbox.commands.run(hold, background=True, timeout=0):
            if out:
                return sandbox

    sandbox = holder()
    try:
        taken = "holds a lock on '/data/lock' in a volume"
        (fork,) = sandbox.fork(count=1)
        assert isinstance(fork, Exception) and taken in str(fork), fork
        sandbox.pause()
        other = holder()
        with pytest.raises(Exception, match=taken):
            sandbox.connect()
        other.kill()
        sandbox.connect()
        attempt = f'python3 -c "import fcntl; fcntl.{kind}(open(\'/data/lock\',\'w\'), fcntl.LOCK_EX | fcntl.LOCK_NB)" 2>&1 || true'
        assert "BlockingIOError" in run(sandbox, attempt)
    finally:
        sandbox.kill()
        Volume.destroy(volume.volume_id, **cold)


HOSTILE = """
import fcntl, os, struct
def refused(call):
    try:
        call()
        return "allowed"
    except OSError as error:
        return os.strerror(error.errno)
file = os.open("/data/leased", os.O_RDWR | os.O_CREAT)
here = os.open("/data", os.O_RDONLY)
print(refused(lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)))
print(refused(lambda: fcntl.ioctl(here, 0x5000940e, bytearray(struct.pack("q4088s", 0, b"nested")))))
print(refused(lambda: fcntl.ioctl(here, 0x4008941a, bytearray(struct.pack("Q", 2)))))
"""


@pytest.mark.container
def test_programs_cannot_hold_up_the_server_by_a_volume(server, volume):
    sandbox = Sandbox.create(volume_mounts={"/data": volume})
    try:
        sandbox.files.write("/tmp/hostile.py", HOSTILE)
        assert run(sandbox, "python3 /tmp/hostile.py").splitlines() == [
            "Invalid argument", "Inappropriate ioctl for device", "Inappropriate ioctl for device",
        ]
        run(sandbox, "echo shared > /data/one && cp --reflink=always /data/one /data/two")
        assert volume.read_file("two") == "shared\n"
        many = "import os\nfor n in range(500): os.symlink('\\x01' * 4000, f'/data/links/{n}')"
        sandbox.files.write("/tmp/many.py", many)
        run(sandbox, "mkdir /data/links && python3 /tmp/many.py")
        with pytest.raises(Exception, match="too much in it"):
            volume.list("links")
        assert [entry.name for entry in volume.list("/")] == ["leased", "links", "one", "two"]
    finally:
        sandbox.kill()


@pytest.mark.container
def test_a_file_of_a_volume_that_cannot_be_found_again_is_named(cold_server, cold, monkeypatch):
    monkeypatch.setenv("E2B_VOLUME_API_URL", cold_server.url)
    volume = Volume.create(f"n-{uuid.uuid4().hex[:12]}", **cold)
    sandbox = Sandbox.create(volume_mounts={"/data": volume}, **cold)
    try:
        program = "import os,time; f=open('/data/a','w'); os.link('/data/a','/data/b'); os.unlink('/data/a'); print(1,flush=True); time.sleep(1000)"
        for out, _, _ in sandbox.commands.run(f'python3 -c "{program}"', background=True, timeout=0):
            if out:
                break
        with pytest.raises(Exception, match="file of a volume"):
            sandbox.pause()
        assert run(sandbox, "ls -A /data") == "b\n"
        sandbox.pause(keep_memory=False)
        sandbox.connect()
        assert run(sandbox, "ls -A /data") == "b\n"
    finally:
        sandbox.kill()
        Volume.destroy(volume.volume_id, **cold)


def test_a_token_does_not_outlive_its_teams_standing(server):
    admin = {"X-Admin-Token": server.admin_token}
    _, _, team = server.call("POST", "/admin/teams", {"name": f"t{uuid.uuid4().hex[:8]}"}, admin)
    team_id = team.get("teamID") or team.get("id")
    _, _, key = server.call("POST", f"/admin/teams/{team_id}/api-keys", {"name": "k"}, admin)
    _, _, made = server.call("POST", "/volumes", {"name": "v"}, {"X-API-Key": key["key"]})
    url = f"{server.url}/volumecontent/{made['volumeID']}/path"
    token = {"Authorization": f"Bearer {made['token']}"}
    assert httpx.get(url, params={"path": "/"}, headers=token).status_code == 200
    server.call("PATCH", f"/admin/teams/{team_id}", {"banned": True}, admin)
    refused = httpx.get(url, params={"path": "/"}, headers=token)
    assert (refused.status_code, refused.json()["code"]) == (403, "403")
    server.call("PATCH", f"/admin/teams/{team_id}", {"banned": False}, admin)
    server.call("DELETE", f"/volumes/{made['volumeID']}", headers={"X-API-Key": key["key"]})


def test_a_token_does_not_outlive_its_key(server):
    _, _, made = server.call("POST", "/volumes", {"name": f"k{uuid.uuid4().hex[:8]}"}, {"X-API-Key": server.make_key("short")})
    url = f"{server.url}/volumecontent/{made['volumeID']}/path"
    status = lambda made: httpx.get(url, params={"path": "/"}, headers={"Authorization": f"Bearer {made['token']}"}).status_code
    assert status(made) == 200
    admin = {"X-Admin-Token": server.admin_token}
    _, _, keys = server.call("GET", "/api-keys", headers=admin)
    short = next(key["id"] for key in keys if key["name"] == "short")
    assert server.call("DELETE", f"/api-keys/{short}", headers=admin)[0] == 204
    assert status(made) == 401
    _, _, again = server.call("GET", f"/volumes/{made['volumeID']}")
    assert status(again) == 200 and status(made) == 401
    server.call("DELETE", f"/volumes/{made['volumeID']}")


@pytest.mark.container
def test_a_removal_ends_with_the_request(server, volume):
    """A sandbox that adds files all the time must not keep a thread of the server busy."""
    sandbox = Sandbox.create(volume_mounts={"/data": volume})
    try:
        run(sandbox, "mkdir /data/full")
        fill = "import os\nn = 0\nwhile True:\n    n += 1\n    try: open(f'/data/full/{n}', 'w').close()\n    except OSError: os.makedirs('/data/full', exist_ok=True)"
        sandbox.files.write("/tmp/fill.py", fill)
        filling = sandbox.commands.run("python3 /tmp/fill.py", background=True, timeout=0)
        headers = {"Authorization": f"Bearer {volume.token}"}
        url = f"{server.url}/volumecontent/{volume.volume_id}/path"
        for _ in range(3):
            with contextlib.suppress(httpx.TimeoutException):
                httpx.delete(url, params={"path": "/full"}, headers=headers, timeout=1)
        oldest = "ls /data/full | sort -n | head -1"
        deadline = time.monotonic() + 20
        while len(set(run(sandbox, f"{oldest}; sleep 0.3; {oldest}; sleep 0.3; {oldest}").split())) != 1:
            assert time.monotonic() < deadline, "the files are still being removed"
        filling.kill()
        assert httpx.delete(url, params={"path": "/full"}, headers=headers, timeout=60).status_code in (204, 404)
    finally:
        sandbox.kill()
