"""Snapshots by name, tag and page; forks and their limits; rollback; idempotent creates."""

import urllib.parse

import pytest
from conftest import options_of
from e2b import NotFoundException, RateLimitException, Sandbox
from e2b.exceptions import SandboxException
from server import Server

BOOT = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def source(cold):
    sandbox = Sandbox.create(metadata={"who": "source"}, **cold)
    yield sandbox
    sandbox.kill()


def api(options):
    return {name: value for name, value in options.items() if name != "sandbox_url"}


def ids(paginator):
    found = []
    while paginator.has_next:
        found += [item.snapshot_id for item in paginator.next_items()]
    return found


def test_a_tagged_name_means_its_newest_snapshot(cold, source):
    taken = {}
    for tag in ("one", "two"):
        source.files.write("tag", tag)
        taken[tag] = source.create_snapshot(name=f"point:{tag}")
        assert any("point" in name for name in taken[tag].names)
    source.files.write("tag", "later")
    again = source.create_snapshot(name="point:two")
    assert again.snapshot_id == taken["two"].snapshot_id, "the name has moved on"
    for reference, content in [("point:one", "one"), ("point:two", "later"), (taken["one"].snapshot_id, "one")]:
        copy = Sandbox.create(reference, **cold)
        assert copy.files.read("tag") == content
        copy.kill()
    assert set(ids(Sandbox.list_snapshots(name="point", **api(cold)))) == {each.snapshot_id for each in taken.values()}
    assert ids(Sandbox.list_snapshots(name="point:one", **api(cold))) == [taken["one"].snapshot_id]
    assert ids(Sandbox.list_snapshots(name="nothing", **api(cold))) == []
    with pytest.raises(SandboxException):
        Sandbox.create("point", **cold)
    assert Sandbox.delete_snapshot("point:one", **api(cold)) is True
    for bad in ("up:", ":tag", "a b", "other/team"):
        with pytest.raises(SandboxException):
            source.create_snapshot(name=bad)


def test_lists_are_paged_newest_first(cold, source):
    taken = [source.create_snapshot(mode="filesystem").snapshot_id for _ in range(5)]
    pages = source.list_snapshots(limit=2)
    seen = []
    while pages.has_next:
        page = [item.snapshot_id for item in pages.next_items()]
        assert 1 <= len(page) <= 2
        seen += page
    assert seen == taken[::-1]
    assert set(taken) <= set(ids(Sandbox.list_snapshots(**api(cold))))
    other = Sandbox.create(**cold)
    assert ids(other.list_snapshots()) == []
    other.kill()
    for snapshot in taken:
        assert Sandbox.delete_snapshot(snapshot, **api(cold)) is True
    assert ids(source.list_snapshots()) == []


def test_lists_reject_invalid_parameters(cold_server):
    for query in ("limit=0", "limit=101", "limit=x", "nextToken=garbage", "sandboxID=NO"):
        status, _, body = cold_server.call("GET", f"/snapshots?{query}")
        assert status == 400 and body["code"] == 400, (query, body)


def test_a_disk_snapshot_starts_cold(cold, source):
    sleeper = source.commands.run("sleep 1000", background=True, timeout=0)
    source.files.write("note", "kept")
    snapshot = source.create_snapshot(mode="filesystem")
    assert sleeper.pid in {process.pid for process in source.commands.list()}, "the source goes on"
    copy = Sandbox.create(snapshot.snapshot_id, **cold)
    assert copy.files.read("note") == "kept"
    assert sleeper.pid not in {process.pid for process in copy.commands.list()}
    assert copy.commands.run(BOOT).stdout != source.commands.run(BOOT).stdout
    copy.kill()


def test_paused_and_unknown_ones_cannot_be_captured(cold_server, cold, source):
    source.pause()
    for call, body in [("snapshots", {}), ("fork", {}), ("rollback", {"snapshotID": "any"})]:
        status, _, answer = cold_server.call("POST", f"/sandboxes/{source.sandbox_id}/{call}", body)
        assert status == 409 and answer["code"] == 409, (call, answer)
        status, _, answer = cold_server.call("POST", f"/sandboxes/i{'0' * 20}/{call}", body)
        assert status == 404 and answer["code"] == 404, (call, answer)
    with pytest.raises(NotFoundException):
        Sandbox.create_snapshot("i" + "0" * 20, **api(cold))


def test_each_fork_has_a_result_of_its_own():
    server = Server("--max-sandboxes", "5", "--pool", "0")
    try:
        options = options_of(server)
        source = Sandbox.create(metadata={"who": "source"}, **options)
        extra = [Sandbox.create(**options) for _ in range(2)]
        forks = source.fork(timeout=60, count=4)
        good = [fork for fork in forks if isinstance(fork, Sandbox)]
        bad = [fork for fork in forks if not isinstance(fork, Sandbox)]
        assert (len(good), len(bad)) == (2, 2)
        assert all(isinstance(error, RateLimitException) for error in bad), bad
        assert {fork.get_info().metadata["who"] for fork in good} == {"source"}
        for count, status in [(0, 400), (101, 400), (5, 400)]:
            assert server.call("POST", f"/sandboxes/{source.sandbox_id}/fork", {"count": count})[0] == status
        assert source.commands.run("echo well").stdout == "well\n"
        assert len(list((server.home / "snapshots").iterdir())) == 0, "the forks' common state is gone"
        for each in [source, *extra, *good]:
            each.kill()
    finally:
        server.stop()


@pytest.mark.every_engine
def test_a_rollback_restores_memory_files_and_processes(cold_server, cold, source):
    kept = source.commands.run("sleep 1000", background=True, timeout=0)
    source.files.write("note", "then")
    snapshot = source.create_snapshot(name="before")
    boot, end = source.commands.run(BOOT).stdout, source.get_info().end_at
    source.files.write("note", "now")
    later = source.commands.run("sleep 2000", background=True, timeout=0)
    source.commands.kill(kept.pid)

    def back(reference, sandbox=source):
        return cold_server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/rollback", {"snapshotID": reference})

    for reference in (snapshot.snapshot_id, "before"):
        status, _, body = back(reference)
        assert status == 200 and body["sandboxID"] == source.sandbox_id, body
        assert source.files.read("note") == "then", "same id, same token: the handle is good"
        pids = {process.pid for process in source.commands.list()}
        assert kept.pid in pids and later.pid not in pids
        assert source.commands.run(BOOT).stdout == boot
        assert source.get_info().end_at == end, "its time goes on as it was"
        source.files.write("note", "again")
    assert source.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == source.sandbox_id
    other = Sandbox.create(**cold)
    for sandbox, reference, expected in [(other, snapshot.snapshot_id, 400), (source, "base", 400), (source, "nothing", 404)]:
        status, _, body = back(reference, sandbox)
        assert status == expected and body["message"], body
    assert other.commands.run("echo untouched").stdout == "untouched\n"
    other.kill()


def test_snapshots_belong_to_their_team(cold_server, source):
    snapshot = source.create_snapshot()
    admin = {"X-Admin-Token": cold_server.admin_token}
    team = cold_server.call("POST", "/admin/teams", {"name": "others", "slug": "others"}, admin)[2]["teamID"]
    key = cold_server.call("POST", f"/admin/teams/{team}/api-keys", {"name": "k"}, admin)[2]["key"]
    stranger = {"X-API-Key": key}
    path = "/templates/" + urllib.parse.quote(snapshot.snapshot_id, safe="")
    assert cold_server.call("GET", "/snapshots", headers=stranger)[2] == []
    assert cold_server.call("DELETE", path, headers=stranger)[0] == 404
    assert cold_server.call("POST", "/v2/sandboxes", {"templateID": snapshot.snapshot_id}, stranger)[0] == 404
    for call in ("pause", "snapshots", "fork"):
        assert cold_server.call("POST", f"/sandboxes/{source.sandbox_id}/{call}", {}, stranger)[0] == 404


def test_a_create_with_an_idempotency_key_happens_once(cold_server, cold):
    first = Sandbox.create(metadata={"n": "1"}, idempotency_key="once-1", **cold)
    again = Sandbox.create(metadata={"n": "1"}, idempotency_key="once-1", **cold)
    assert again.sandbox_id == first.sandbox_id
    assert again.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == first.sandbox_id
    body = {"templateID": "base", "metadata": {"n": "2"}}
    status, _, answer = cold_server.call("POST", "/v2/sandboxes", body, {"Idempotency-Key": "once-1"})
    assert status == 422 and answer["error_code"] == "idempotency_request_mismatch", answer
    other = Sandbox.create(metadata={"n": "2"}, idempotency_key="once-2", **cold)
    assert other.sandbox_id != first.sandbox_id
    first.kill()
    other.kill()
