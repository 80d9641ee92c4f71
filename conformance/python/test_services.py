"""`systemctl` and `service` in sandboxes of `base`: what documented programs do with services after they have installed them."""

import pytest
from e2b import CommandExitException, Sandbox

from server import Server


@pytest.fixture(scope="module")
def sandbox(server):
    with Sandbox.create() as sandbox:
        yield sandbox


def run(sandbox, command, **options):
    return sandbox.commands.run(command, **options).stdout


def unit(sandbox, name, text):
    sandbox.files.write(f"/etc/systemd/system/{name}.service", text, user="root")


def answer(sandbox, command):
    """Exit code and output of a command that may fail."""
    try:
        done = sandbox.commands.run(command)
    except CommandExitException as failure:
        done = failure
    return done.exit_code, done.stdout + done.stderr


def test_a_service_is_started_followed_and_stopped(sandbox):
    unit(sandbox, "web", """
[Unit]
Description=A small web server
[Service]
User=user
RuntimeDirectory=web
Environment="GREETING=hello there" PORT=8123
ExecStartPre=-/bin/false
ExecStartPre=/bin/sh -c 'echo "${GREETING}" > /run/web/index.html'
ExecStart=/usr/bin/python3 -m http.server $PORT --directory /run/web
[Install]
WantedBy=multi-user.target
""")
    assert answer(sandbox, "systemctl is-active web") == (3, "inactive\n")
    code, text = answer(sandbox, "systemctl start web")
    assert code == 4 and "Access denied; use sudo" in text
    run(sandbox, "sudo systemctl daemon-reload && sudo systemctl enable --now web")
    assert run(sandbox, "curl -s --retry 20 --retry-connrefused --retry-delay 1 localhost:8123/") == "hello there\n"
    assert answer(sandbox, "systemctl is-active web; systemctl is-enabled web.service") == (0, "active\nenabled\n")
    code, text = answer(sandbox, "systemctl status web --no-pager")
    assert code == 0 and "A small web server" in text and "Active: active (running)" in text and "GET / HTTP" in run(sandbox, "sudo cat /var/log/services/web.log")
    pid = run(sandbox, "systemctl show web -p MainPID --value").strip()
    assert run(sandbox, f"stat -c %U /proc/{pid}").strip() == "user"
    run(sandbox, "sudo systemctl restart web")
    assert run(sandbox, "systemctl show web -p MainPID --value").strip() not in ("0", pid)
    run(sandbox, "sudo service web stop")
    assert answer(sandbox, "systemctl is-active web") == (3, "inactive\n")
    assert answer(sandbox, "pgrep -f http.server") == (1, "")
    run(sandbox, "sudo systemctl disable web")
    assert answer(sandbox, "systemctl is-enabled web") == (1, "disabled\n")


def test_services_say_when_they_are_ready_and_why_they_are_not(sandbox):
    program = "import os, socket, time\nprint('begins', flush=True)\ntime.sleep(0.3)\nopen('/tmp/ready', 'w').close()\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\naddress = os.environ['NOTIFY_SOCKET']\ns.sendto(b'STATUS=up\\nREADY=1', '\\0' + address[1:])\ntime.sleep(1000)\n"
    sandbox.files.write("/srv/notify.py", program, user="root")
    unit(sandbox, "notify", "[Service]\nType=notify\nExecStart=/usr/bin/python3 /srv/notify.py\n")
    assert run(sandbox, "sudo systemctl start notify; ls /tmp/ready") == "/tmp/ready\n"
    unit(sandbox, "broken", "[Service]\nExecStart=/bin/sh -c 'echo it is broken; exit 7'\n")
    code, text = answer(sandbox, "sudo systemctl start broken")
    assert code == 1 and "ended with status 7" in text, text
    code, text = answer(sandbox, "sudo systemctl status broken")
    assert code == 3 and "failed" in text and "it is broken" in text, text
    unit(sandbox, "missing", "[Service]\nExecStart=/no/such/program\n")
    assert "No such file or directory: '/no/such/program'" in answer(sandbox, "sudo systemctl start missing")[1]
    assert answer(sandbox, "sudo systemctl start nothing-here") == (5, "Unit nothing-here.service not found.\n")
    assert "only services can be started" in answer(sandbox, "sudo systemctl start some.socket")[1]
    run(sandbox, "sudo systemctl stop notify")


def test_daemons_oneshots_and_restarts(sandbox):
    unit(sandbox, "daemon", "[Service]\nType=forking\nExecStart=/bin/sh -c '(sleep 4000 & sleep 4001 & echo $$! > /run/daemon.pid) &'\nPIDFile=/run/daemon.pid\n")
    run(sandbox, "sudo systemctl start daemon")
    assert run(sandbox, "cat /run/daemon.pid") == run(sandbox, "systemctl show daemon -p MainPID --value")
    assert run(sandbox, "pgrep -fc 'sleep 400[01]'").strip() == "2"
    run(sandbox, "sudo systemctl stop daemon")
    assert answer(sandbox, "pgrep -f '^sleep 400[01]'") == (1, "")
    unit(sandbox, "once", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo one >> /tmp/once'\nExecStart=/bin/sh -c 'echo two >> /tmp/once'\n")
    run(sandbox, "sudo systemctl start once; sudo systemctl start once")
    assert run(sandbox, "cat /tmp/once; systemctl is-active once") == "one\ntwo\nactive\n"
    unit(sandbox, "again", "[Unit]\nRequires=once.service\n[Service]\nRestart=always\nRestartSec=50ms\nExecStart=/bin/sleep 5000\n")
    run(sandbox, "sudo systemctl start again")
    before = run(sandbox, "systemctl show again -p MainPID --value").strip()
    run(sandbox, f"sudo kill -9 {before}")
    shown = run(sandbox, f"for i in $(seq 100); do now=$(systemctl show again -p MainPID --value); [ $now != 0 ] && [ $now != {before} ] && break; sleep 0.1; done; systemctl is-active again")
    assert shown == "active\n"
    run(sandbox, "sudo systemctl stop again && ! pgrep -f '^/bin/sleep 5000'")


@pytest.mark.container
def test_an_installed_package_is_a_service():
    """The programs of E2B's documentation: nginx, installed and started."""
    server = Server(trusting=True)
    try:
        installed_and_started(Sandbox.create(timeout=300, api_key=server.key, api_url=server.url, sandbox_url=server.url))
    finally:
        server.stop()


def installed_and_started(sandbox):
    with sandbox:
        run(sandbox, "sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends nginx-light >/dev/null", timeout=200)
        run(sandbox, "sudo systemctl start nginx")
        assert "Welcome to nginx" in run(sandbox, "curl -s localhost")
        code, text = answer(sandbox, "systemctl status nginx")
        assert code == 0 and "Active: active (running)" in text
        run(sandbox, "sudo systemctl reload nginx && sudo service nginx restart")
        assert "Welcome to nginx" in run(sandbox, "curl -s localhost")
        run(sandbox, "sudo systemctl stop nginx && ! pgrep nginx")
