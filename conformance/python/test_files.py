"""Files through the synchronous SDK, and signed URLs from plain HTTP."""

import os
import subprocess
import urllib.error
import urllib.request

import pytest
from e2b import FileType, NotFoundException, Sandbox, SandboxException


@pytest.mark.every_engine
def test_text_and_20_mb_of_bytes_are_read_back_unchanged(sandbox):
    info = sandbox.files.write("/home/user/dir/sub/note.txt", "hällo\n")
    assert info.path == "/home/user/dir/sub/note.txt"
    assert sandbox.files.read("dir/sub/note.txt") == "hällo\n"
    data = os.urandom(20_000_000)
    sandbox.files.write("blob.bin", data)
    assert bytes(sandbox.files.read("blob.bin", format="bytes")) == data
    owner = sandbox.commands.run("stat -c '%U %a %s' dir dir/sub/note.txt blob.bin").stdout.splitlines()
    assert [line.split()[0] for line in owner] == ["user"] * 3
    assert owner[2] == "user 644 20000000"


def test_several_files_in_one_request(sandbox):
    from e2b.sandbox.filesystem.filesystem import WriteEntry

    entries = [WriteEntry(path=f"many/{n}.txt", data=str(n)) for n in range(20)]
    written = sandbox.files.write_files(entries)
    assert [entry.path for entry in written] == [f"/home/user/many/{n}.txt" for n in range(20)]
    assert sandbox.files.read("many/13.txt") == "13"


def test_names_of_several_files_are_kept_as_sent(sandbox):
    from e2b.sandbox.filesystem.filesystem import WriteEntry

    names = ["plain%22quoted", "line%0Abreak", "100%", "a;b=c", "b\\c", "ü x"]
    sandbox.files.write_files([WriteEntry(path=f"kept/{name}", data=name) for name in names])
    assert sorted(entry.name for entry in sandbox.files.list("kept")) == sorted(names)


def test_listing_has_types_and_depth(sandbox):
    sandbox.files.make_dir("tree/a/b")
    sandbox.files.write("tree/file", "x")
    flat = {entry.name: entry.type for entry in sandbox.files.list("tree")}
    assert flat == {"a": FileType.DIR, "file": FileType.FILE}
    deep = [entry.path for entry in sandbox.files.list("tree", depth=3)]
    assert deep == ["/home/user/tree/a", "/home/user/tree/a/b", "/home/user/tree/file"]


def test_move_remove_exists_and_info(sandbox):
    sandbox.files.write("old", "content")
    assert sandbox.files.make_dir("directory") is True
    assert sandbox.files.make_dir("directory") is False
    assert sandbox.files.rename("old", "directory/new").path == "/home/user/directory/new"
    assert not sandbox.files.exists("old")
    info = sandbox.files.get_info("directory/new")
    assert (info.size, info.permissions, info.owner) == (7, "-rw-r--r--", "user")
    sandbox.files.remove("directory")
    assert not sandbox.files.exists("directory")
    with pytest.raises(NotFoundException):
        sandbox.files.read("directory/new")


def test_proc_files_are_read_to_their_end(sandbox):
    assert len(sandbox.files.read("/proc/sys/kernel/random/boot_id").strip()) == 36


def test_a_signed_url_gives_access_to_one_file_only(server, sandbox):
    sandbox.files.write("shared.txt", "for a friend")
    route = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}

    def get(url):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=route)).read().decode()
        except urllib.error.HTTPError as error:
            return error.code

    url = sandbox.download_url("shared.txt", user="user", use_signature_expiration=60)
    assert get(url) == "for a friend"
    assert get(url.replace("shared.txt", ".bashrc")) == 401
    assert get(sandbox.download_url("shared.txt", user="user", use_signature_expiration=-60)) == 401
    assert get(f"{server.url}/files?path=shared.txt") == 401


def test_curl_uploads_and_downloads_by_signed_urls(sandbox, tmp_path):
    content = os.urandom(8 << 20)
    (tmp_path / "up").write_bytes(content)
    route = ["-H", f"E2b-Sandbox-Id: {sandbox.sandbox_id}", "-H", "E2b-Sandbox-Port: 49983"]

    def curl(*words):
        command = ["curl", "-sS", "--noproxy", "*", "-w", "%{http_code}", *route, *words]
        return subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout

    def url(make, path, user="user"):
        return make(path, user=user, use_signature_expiration=60)

    curl_raw = ["-H", "Content-Type: application/octet-stream", "--data-binary", "@up"]
    for path, how in [("form", ["-F", "file=@up"]), ("raw", curl_raw), ("chunked", [*curl_raw, "-H", "Transfer-Encoding: chunked"])]:
        said = curl(*how, url(sandbox.upload_url, f"curl/{path}"))
        assert said.endswith(b"200") and f'"path":"/home/user/curl/{path}"'.encode() in said, said
        assert curl("-o", "down", "--compressed", url(sandbox.download_url, f"curl/{path}")) == b"200"
        assert (tmp_path / "down").read_bytes() == content, path
        assert curl("-o", "part", "-r", "1000-1999", url(sandbox.download_url, f"curl/{path}")) == b"206"
        assert (tmp_path / "part").read_bytes() == content[1000:2000]
    owner = sandbox.commands.run("stat -c '%U %a %s' curl curl/*").stdout.splitlines()
    assert owner[1:] == [f"user 644 {len(content)}"] * 3 and owner[0].startswith("user 755 ")
    # A link is valid for one direction and one file; changing the path in it makes it invalid.
    assert curl(*curl_raw, url(sandbox.download_url, "curl/raw")).endswith(b"401")
    assert curl("-F", "file=@up", url(sandbox.upload_url, "curl/raw").replace("path=curl%2Fraw", "path=curl%2Fother")).endswith(b"401")
    assert not sandbox.files.exists("curl/other")


def test_a_watched_directory_reports_events_in_order(sandbox):
    sandbox.files.make_dir("watched")
    with_events = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/new.txt", "x")
    events = [(event.name, event.type.value) for event in with_events.get_new_events()]
    assert events == [("new.txt", "create"), ("new.txt", "chmod"), ("new.txt", "write")]
    sandbox.commands.run("mkdir -p watched/deep/er && touch watched/deep/er/leaf && rm watched/new.txt")
    events = [(event.name, event.type.value) for event in with_events.get_new_events()]
    assert ("deep/er/leaf", "create") in events
    assert ("new.txt", "remove") in events
    with_events.stop()


@pytest.mark.every_engine
def test_no_path_leads_out_of_the_sandbox(sandbox):
    host = os.uname().nodename
    for path in ["../../../../etc/hostname", "/proc/self/root/etc/hostname", "/proc/1/root/etc/hostname"]:
        assert sandbox.files.read(path).strip() == "sandbox" != host
    sandbox.commands.run("ln -s / /tmp/up; ln -s /proc/1/cwd /tmp/cwd")
    assert sandbox.files.read("/tmp/up/../../../etc/hostname").strip() == "sandbox"
    assert sandbox.files.read("/tmp/cwd/etc/hostname").strip() == "sandbox"


def test_one_sandbox_never_sees_anothers_files(server, sandbox):
    sandbox.files.write("/tmp/secret", "mine")
    other = Sandbox.create()
    try:
        assert not other.files.exists("/tmp/secret")
    finally:
        other.kill()


@pytest.mark.every_engine
def test_files_are_touched_with_the_rights_of_the_named_user(sandbox):
    sandbox.commands.run("ln -s /etc/shadow innocent; ln -s /root hidden; echo of user > own")
    shadow = sandbox.commands.run("stat -c '%U %a %s' /etc/shadow", user="root").stdout
    for attempt in [
        lambda: sandbox.files.write("innocent", "gone"),
        lambda: sandbox.files.write("hidden/new", "x"),
        lambda: sandbox.files.read("innocent"),
        lambda: sandbox.files.list("hidden"),
        lambda: sandbox.files.make_dir("hidden/dir"),
        lambda: sandbox.files.rename("own", "hidden/own"),
        lambda: sandbox.files.remove("/etc/passwd"),
        lambda: sandbox.files.watch_dir("hidden"),
    ]:
        with pytest.raises(SandboxException, match="permission denied"):
            attempt()
    assert sandbox.commands.run("stat -c '%U %a %s' /etc/shadow; ls -A /root | grep -c -E '^(new|dir|own)$' || true", user="root").stdout == shadow + "0\n"
    assert sandbox.files.read("/home/user/innocent", user="root").startswith("root:")
    sandbox.files.write("/home/user/hidden/new", "x", user="root")
    # Clients write to directories of root's as `user`, who has no rights there.
    sandbox.files.write("/app/src/main.py", "pass")
    sandbox.files.make_dir("/data")
    sandbox.files.rename("/data", "/moved")
    assert sandbox.commands.run("stat -c %U /app /app/src /app/src/main.py /moved").stdout.split() == ["user"] * 4
    sandbox.files.remove("/moved")
    sandbox.files.remove("/app")
    assert not sandbox.files.exists("/app")


def test_a_link_without_a_path_uploads_below_the_home_only(sandbox, tmp_path):
    (tmp_path / "up").write_text("x")
    url = sandbox.upload_url("", user="root", use_signature_expiration=60)

    def upload(name, *words):
        route = ["-H", f"E2b-Sandbox-Id: {sandbox.sandbox_id}", "-H", "E2b-Sandbox-Port: 49983"]
        command = ["curl", "-sS", "--noproxy", "*", "-w", "%{http_code}", *route, *words, "-F", f"file=@up;filename={name}", url]
        return subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, text=True).stdout[-3:]

    sandbox.commands.run("ln -s /etc /root/out; mkdir /root/real", user="root")
    assert [upload(name) for name in ["a.txt", "real/b.txt", "/root/c.txt"]] == ["200"] * 3
    for name in ["/etc/d.txt", "../etc/d.txt", "real/../../etc/d.txt", "out/d.txt"]:
        assert upload(name) != "200", name
    assert upload("/etc/d.txt", "-H", "X-Envd-By-Link: false", "-H", "X-Access-Token: wrong") == "401"
    assert not sandbox.files.exists("/etc/d.txt", user="root")
