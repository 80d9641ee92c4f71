"""The server as a service: its configuration file, signals, and what it tells a service manager."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from server import Server

# Listens for the server, then becomes it, as a service manager does.
ACTIVATION = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
print("port", listening.getsockname()[1], file=sys.stderr, flush=True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def config(*words):
    return subprocess.run([os.environ["COFFERDAM_BIN"], "config", *words], capture_output=True, text=True)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket of a service manager."""
    path = tmp_path / "notify"
    receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiving.bind(str(path))
    receiving.settimeout(20)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    yield receiving
    receiving.close()


def told(manager, wanted):
    """Waits for a state; returns the message it is in."""
    while True:
        message = manager.recv(4096).decode()
        if wanted in message.splitlines():
            return message



def test_settings_are_read_from_a_file_and_again_at_a_signal(manager, tmp_path):
    file = tmp_path / "cofferdam.toml"
    file.write_text("pool = 0\negress-deny = ['198.51.100.0/24']\n")
    server = Server("--config", str(file), "--pool-memory", "512")
    try:
        told(manager, "READY=1")
        admin = {"X-Admin-Token": server.admin_token}
        team = server.call("GET", "/teams", headers=admin)[2][0]["teamID"]
        everybody = lambda: server.call("GET", f"/admin/teams/{team}", headers=admin)[2]["egressOfAllTeams"]["deny"]
        assert everybody() == ["198.51.100.0/24"]
        file.write_text("pool = 1\negress-deny = ['203.0.113.0/24', '*.bad.example']\nlog = 'info,edge=debug'\n")
        server.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in told(manager, "RELOADING=1")
        told(manager, "READY=1")
        assert sorted(everybody()) == ["*.bad.example", "203.0.113.0/24"]
        log = server.tail()
        assert "take effect at the next start" in log and 'changed="pool"' in log
        file.write_text("egress-denny = ['192.0.2.0/24']\n")
        server.process.send_signal(signal.SIGHUP)
        told(manager, "RELOADING=1")
        told(manager, "READY=1")
        assert "there is no setting egress-denny; did you mean egress-deny?" in server.tail()
        assert sorted(everybody()) == ["*.bad.example", "203.0.113.0/24"]
    finally:
        server.stop()
    told(manager, "STOPPING=1")


def test_the_file_is_checked_and_shown(tmp_path):
    file = tmp_path / "cofferdam.toml"
    file.write_text("pool = 3\ndatabase = 'postgres://user:hidden@host/name'\nrate-limit = ['*=5/s', 'POST /v2/sandboxes=1/s']\n")
    assert config("check", str(file)).stdout == f"{file}: 3 settings, all correct\n"
    shown = config("show", str(file)).stdout
    assert f"pool = 3    # {file}\n" in shown and "retention-days = 7\n" in shown
    assert "rate-limit = *=5/s, POST /v2/sandboxes=1/s" in shown
    assert "hidden" not in shown
    file.write_text("pool = 3\nretention-days = 9000\n")
    refused = config("check", str(file))
    assert refused.returncode == 1 and "retention-days" in refused.stderr and "9000" in refused.stderr
    started = subprocess.run([os.environ["COFFERDAM_BIN"], "serve", "--config", str(file)], capture_output=True, text=True)
    assert started.returncode == 2 and str(file) in started.stderr and "9000" in started.stderr


def test_a_service_manager_listens_for_the_server_and_watches_it(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    server = Server(prefix=(sys.executable, "-c", ACTIVATION))
    try:
        port = server.tail().split("port ")[1].split()[0]
        assert server.url == f"http://127.0.0.1:{port}"
        for _ in range(3):
            told(manager, "WATCHDOG=1")
    finally:
        server.stop()


def test_room_is_shown_and_given_back(server):
    server.call("GET", "/sandboxes")
    shown = server.cli("system", "df")
    assert "cofferdam.db" in shown and " of the disk are free" in shown
    assert "layers removed" in server.cli("system", "prune")
    assert server.call("POST", "/cofferdam/v1/system/prune", {})[0] == 401
    metrics = server.call("GET", "/metrics", headers={"X-Admin-Token": server.admin_token})[2].decode()
    free = next(line for line in metrics.splitlines() if line.startswith("cofferdam_disk_free_bytes "))
    assert float(free.split()[1]) > 1 << 20
