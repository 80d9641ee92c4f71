"""SIGKILL of the server during every call on a sandbox: everything acknowledged is there, every other call has happened completely or
not at all, and nothing else is left. COFFERDAM_CHAOS_ROUNDS is the number of rounds.
"""

import json
import os
import random
import threading
import time
import urllib.parse

import pytest

import host_state
from server import Server

ROUNDS = int(os.environ.get("COFFERDAM_CHAOS_ROUNDS", "60"))
SEED = int(os.environ.get("COFFERDAM_CHAOS_SEED", str(random.randrange(1 << 32))))
MAX_SANDBOXES = 8
WORKERS = 3
# Pre-started sandboxes, and prepared slots.
WAITING = 2
READY = 4


class Model:
    """What the server has acknowledged. `busy` are sandboxes with a call under way when the server was killed: the state before the call and
    that after it are both correct."""

    def __init__(self, server, luck):
        self.server, self.luck = server, luck
        self.lock = threading.Lock()
        self.states = {}
        self.busy = {}
        self.snapshots = set()
        self.doomed_snapshots = set()
        self.seen = {}
        self.interrupted = set()

    def call(self, method, path, body=None):
        try:
            return self.server.call(method, path, body)
        except (OSError, ValueError):
            return None

    def pick(self, state):
        with self.lock:
            free = [id for id, at in self.states.items() if at == state and id not in self.busy]
            if not free:
                return None
            id = self.luck.choice(free)
            return id

    def on(self, state, name, method, path, body, after):
        """One call on a sandbox in this state; `after` is its state once the call is acknowledged."""
        id = self.pick(state)
        if id is None:
            return
        with self.lock:
            if id in self.busy:
                return
            self.busy[id] = name
        answer = self.call(method, path.format(id), body)
        with self.lock:
            if answer is None:
                return
            del self.busy[id]
            status, _, body = answer
            assert status < 300, (name, id, status, body)
            self.seen[name] = self.seen.get(name, 0) + 1
            if after is None:
                self.states.pop(id)
            else:
                self.states[id] = after
            return body

    def create(self, template="base"):
        if len(self.states) >= MAX_SANDBOXES:
            return
        answer = self.call("POST", "/v2/sandboxes", {"templateID": template, "timeout": 3000})
        if answer:
            if answer[0] == 404 and template != "base":
                return  # The snapshot was deleted at the same time.
            assert answer[0] == 201, answer
            with self.lock:
                self.seen["create"] = self.seen.get("create", 0) + 1
                self.states[answer[2]["sandboxID"]] = "running"

    def create_from_snapshot(self):
        with self.lock:
            known = sorted(self.snapshots)
        if known:
            self.create(self.luck.choice(known))

    def snapshot(self):
        body = self.on("running", "snapshot", "POST", "/sandboxes/{}/snapshots", {}, "running")
        if body:
            with self.lock:
                self.snapshots.add(body["snapshotID"])

    def forget_snapshot(self):
        with self.lock:
            if len(self.snapshots) < 3:
                return
            id = self.luck.choice(sorted(self.snapshots))
            self.snapshots.discard(id)
            self.doomed_snapshots.add(id)
        answer = self.call("DELETE", "/templates/" + urllib.parse.quote(id, safe=""))
        assert answer is None or answer[0] == 204, answer

    def fork(self):
        if len(self.states) >= MAX_SANDBOXES:
            return
        body = self.on("running", "fork", "POST", "/sandboxes/{}/fork", {"timeout": 3000, "count": 2}, "running")
        with self.lock:
            for item in body or []:
                assert "sandbox" in item, item
                self.states[item["sandbox"]["sandboxID"]] = "running"

    def step(self):
        self.luck.choice(
            [
                self.create,
                self.create_from_snapshot,
                self.snapshot,
                self.forget_snapshot,
                self.fork,
                lambda: self.on("running", "pause", "POST", "/sandboxes/{}/pause", {}, "paused"),
                lambda: self.on("running", "pause", "POST", "/sandboxes/{}/pause", {"memory": False}, "paused"),
                lambda: self.on("paused", "resume", "POST", "/v2/sandboxes/{}/connect", {"timeout": 3000}, "running"),
                lambda: self.on("paused", "resume", "POST", "/v2/sandboxes/{}/connect", {"timeout": 3000}, "running"),
                lambda: self.on("running", "kill", "DELETE", "/sandboxes/{}", None, None),
                lambda: self.on("paused", "kill", "DELETE", "/sandboxes/{}", None, None),
            ]
        )()

    def check(self, round, recorded):
        listed = {}

        def wrong():
            listed.clear()
            listed.update({sandbox["sandboxID"]: sandbox["state"] for sandbox in self.server.sandboxes()})
            return self.broken_promises(listed) + self.wrong_states(listed)

        # A capture that the killed server began may still be under way; until it ends, its sandbox is being paused.
        found = host_state.settled(wrong, 60)
        assert not found, f"round {round}: {found}"
        # Unacknowledged ones exist completely or not at all; those that exist are treated like any other from here on.
        self.states = dict(listed)
        self.interrupted |= set(self.busy.values())
        self.busy.clear()
        self.snapshots = self.listed_snapshots()
        for id, state in listed.items():
            route = {"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49983"}
            health = self.server.call("GET", "/health", headers=route)[0]
            assert health == (204 if state == "running" else 502), f"round {round}: {id} is {state} and answers {health}"
        self.check_remains(round, listed, recorded - set(listed))

    def broken_promises(self, listed):
        found = []
        for id, state in self.states.items():
            name, now = self.busy.get(id), listed.get(id)
            may_be_gone = name == "kill" and now is None
            may_be_either = name in ("pause", "resume") and now is not None
            if now != state and not may_be_gone and not may_be_either:
                found.append(f"{id} was {state}, in the middle of {name}, and is {now}")
        return found + [f"snapshot {id} is lost" for id in self.snapshots - self.listed_snapshots()]

    def listed_snapshots(self):
        status, headers, page = self.server.call("GET", "/snapshots")
        assert status == 200 and not headers.get("X-Next-Token")
        return {snapshot["snapshotID"] for snapshot in page}

    def wrong_states(self, listed):
        """There is exactly one saved snapshot for each paused sandbox and each snapshot."""
        states = host_state.states(self.server)
        half_made = [f"half-made state {name}" for name in states if "." in name]
        wanted = sum(state == "paused" for state in listed.values()) + len(self.listed_snapshots())
        return half_made or [f"{len(states)} states instead of {wanted}"] * (len(states) != wanted)

    def check_remains(self, round, listed, waited):
        """Everything that exists belongs to a listed sandbox, to a snapshot, or to what the server keeps prepared."""
        data = self.server.home
        running = {id for id, state in listed.items() if state == "running"}
        states = host_state.states(self.server)

        def strays():
            """Objects without a record, but for those that are being prepared at the moment."""
            records = records_of(data)
            inhabited = host_state.processes(data)
            known = {record["cgroup"] for record in records_of(data).values()}
            found = [f"process {pid} in {group}" for pid, group in inhabited.items() if group not in known]
            found += [f"running {id} without a record" for id in running - set(records)]
            found += [f"{id}, which waited at the killed server" for id in waited & set(records)]
            found += [f"waiting {id}" for id in list(set(records) - running)[WAITING:]]
            found += [f"group {group}" for group in list(host_state.groups(data) - known)[READY:]]
            # Trees of templates and of pre-started sandboxes belong to no listed sandbox; a memory image belongs to its disk's snapshot.
            common = ("ready-", "blank-", "t-", "m-t-")
            volumes = {name.removeprefix("m-") for name in host_state.volumes(self.server) if not name.startswith(common)}
            found += [f"volume {name}" for name in volumes - set(records) - set(states)]
            found += [f"network {name}" for name in list(host_state.network_namespaces(data))[len(running) + WAITING + READY :]]
            found += [f"mount {line}" for line in host_state.mounts(data)]
            found += [f"loop device {name}" for name in host_state.loop_devices(data)[1:]]
            return found + [f"dump {pid}" for pid in host_state.dumps(data)]

        found = host_state.settled(strays)
        assert not found, f"round {round}: {found}"

    def work_in_peace(self):
        """Every operation works after the crashes."""
        for id in list(self.states)[: len(self.states) // 2]:
            assert self.server.call("DELETE", f"/sandboxes/{id}")[0] == 204
            del self.states[id]
        status, _, body = self.server.call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 3000})
        assert status == 201, body
        id = body["sandboxID"]
        self.states[id] = "running"
        for path, body in [("pause", {}), ("connect", {"timeout": 3000}), ("snapshots", {}), ("fork", {"timeout": 3000, "count": 2})]:
            status, _, answer = self.server.call("POST", f"/sandboxes/{id}/{path}", body)
            assert status < 300, (path, answer)
            if path == "fork":
                self.states |= {fork["sandbox"]["sandboxID"]: "running" for fork in answer}

    def end_all(self, round):
        """Everything can be killed and deleted, and then only prepared slots are left."""
        for id in self.states:
            status, _, body = self.server.call("DELETE", f"/sandboxes/{id}")
            assert status == 204, body
        self.server.delete_snapshots()
        self.snapshots.clear()
        assert not self.server.sandboxes()
        found = host_state.settled(lambda: self.wrong_states({}))
        assert not found, found
        self.check_remains(round, {}, set())


def records_of(data):
    """The engine's records of running sandboxes, by id."""
    found = {}
    for path in (data / "sandboxes").iterdir():
        try:
            found[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError):
            pass  # Gone, or just being written.
    return found


@pytest.fixture
def own_server():
    server = Server("--keep-frozen-max", "2", "--slots", str(READY), "--pool", "4")
    # Independent of demand, so that there are pre-started sandboxes at every restart.
    admin = {"X-Admin-Token": server.admin_token}
    assert server.call("PUT", "/cofferdam/v1/pool/base", {"ready": WAITING}, admin)[0] == 204
    yield server
    server.stop()


def longest_call(server):
    """Seconds that the slowest call takes on this machine. In shorter rounds no call would be acknowledged."""
    body = {"templateID": "base", "timeout": 3000}
    began = time.monotonic()
    id = server.call("POST", "/v2/sandboxes", body)[2]["sandboxID"]
    forks = server.call("POST", f"/sandboxes/{id}/fork", {"timeout": 3000, "count": 2})[2]
    took = time.monotonic() - began
    for each in [id, *(fork["sandbox"]["sandboxID"] for fork in forks)]:
        assert server.call("DELETE", f"/sandboxes/{each}")[0] == 204
    return took


@pytest.mark.every_engine
def test_acknowledged_calls_survive_a_server_killed_at_any_moment(own_server):
    print(f"seed {SEED}")
    longest_round = max(0.6, 1.5 * longest_call(own_server))
    luck = random.Random(SEED)
    model = Model(own_server, luck)
    failures = []
    for round in range(ROUNDS):
        stop = threading.Event()

        def work():
            try:
                while not stop.is_set():
                    model.step()
            except Exception as error:  # noqa: BLE001 - told below, by the thread that may fail the test
                failures.append(error)

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        stop.wait(luck.uniform(0.02, longest_round))
        stop.set()
        own_server.crash()
        for worker in workers:
            worker.join()
        assert not failures, (f"seed {SEED}, round {round}", failures, own_server.tail())
        waited = set(records_of(own_server.home))
        own_server.restart()
        model.check(round, waited)
    model.work_in_peace()
    model.end_all(ROUNDS)
    print(f"acknowledged {model.seen}, cut off {model.interrupted}")
    assert {"create", "pause", "resume", "snapshot", "fork", "kill"} <= set(model.seen) | model.interrupted, model.seen
    assert {"create", "pause", "kill"} <= set(model.seen), model.seen
