"""`cofferdam exam`: every attack of ours from inside a sandbox is held off, and the same attacks get through where nothing holds them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest
from server import ENGINE

pytestmark = [pytest.mark.every_engine, pytest.mark.alone]


def test_every_attack_is_held_off(server, tmp_path):
    directory = pathlib.Path(os.environ.get("COFFERDAM_EXAM_DIR", tmp_path))
    directory.mkdir(exist_ok=True)
    output = directory / f"{ENGINE}.json"
    command = [os.environ["COFFERDAM_BIN"], "exam", "--data-dir", str(server.data), "--output", str(output)]
    done = subprocess.run(command, env=os.environ | server.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    report = json.loads(output.read_text())
    assert report["broken"] == report["errors"] == 0
    families = {case["family"] for case in report["cases"] if case["outcome"] == "held"}
    assert families >= {"files", "processes", "network", "host"}
    if ENGINE == "container":
        assert report["tried"] > 200 and families >= {"kernel", "settings", "privileges", "resources"}


@pytest.mark.container
def test_the_same_attacks_get_through_on_the_host(tmp_path):
    """The control: the probes run as root of this host, in a mount namespace of their own and without the rights to set the clock or to restart."""
    probes = tmp_path / "probes.py"
    words = [os.environ["COFFERDAM_BIN"], "exam", "--print-probes"]
    probes.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    text, name = "planted-text", f"exam-control-{os.getpid()}"
    (tmp_path / "flag").write_text(text)
    process = subprocess.Popen(["sleep", "600"], executable="/usr/bin/sleep")
    marked = subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 600"])
    service, abstract = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    abstract.bind("\0" + name)
    abstract.listen()

    def serve():
        while True:
            try:
                stream, _ = service.accept()
            except OSError:
                return
            stream.sendall(text.encode())
            stream.close()

    threading.Thread(target=serve, daemon=True).start()
    facts = {
        "text": text, "directory": str(tmp_path), "file": str(tmp_path / "flag"), "data_dir": str(tmp_path), "process": name, "pid": marked.pid,
        "port": service.getsockname()[1], "abstract": name, "hostname": socket.gethostname(), "addresses": [], "secret_digests": [],
        "own_kernel": False, "memory_mib": 16, "neighbour_port": service.getsockname()[1],
    }
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    unconfined = ["unshare", "--mount", "setpriv", "--bounding-set", "-sys_time,-sys_boot", "--inh-caps", "-sys_time,-sys_boot"]
    try:
        done = subprocess.run([*unconfined, sys.executable, str(probes), str(tmp_path / "facts.json")], capture_output=True, text=True, timeout=300)
    finally:
        for child in (process, marked):
            child.kill()
            child.wait()
        service.close()
        abstract.close()
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [case for case in results if case["outcome"] == "error"], done.stderr
    broken = {case["id"] for case in results if case["outcome"] == "broken"}
    assert broken >= {
        "syscall_bpf", "syscall_mount", "new_user_namespace", "socket_packet", "socket_filter", "write_core_pattern",
        "planted_file", "dangerous_capabilities", "root_of_the_host", "no_filter", "processes_of_the_host", "memory_of_the_host", "signals_the_host",
        "abstract_socket", "host_service_at_127_0_0_1", "memory", "real_time",
    }
    assert len(broken) > 50, sorted(broken)
