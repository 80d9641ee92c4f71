"""What an operator does with the Debian package, in a Debian root of its own: install, start, upgrade beside a running command, remove, purge.

    cargo xtask package-walk

builds two versions and runs this in a mount namespace of its own. Template layers and CRIU are taken from target/, where tests keep them.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

FIRST, SECOND = (pathlib.Path(word).resolve() for word in sys.argv[1:])
TARGET = pathlib.Path(__file__).resolve().parent.parent / "target"
DEPENDS = "ca-certificates,mmdebstrap,debian-archive-keyring,btrfs-progs,e2fsprogs,init-system-helpers,systemd,procps,man-db"
UNIT = "/usr/lib/systemd/system/cofferdam.service"


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


class Host:
    """A Debian root as a machine: its processes have it for their root directory, not by chroot, in which no user namespace can be made."""

    def __init__(self, root):
        self.root, self.server = root, None
        run("mmdebstrap", "--variant=apt", f"--include={DEPENDS}", "bookworm", root)
        run("mount", "--bind", root, root)
        for path in ["proc", "sys", "dev"]:
            run("mount", "--rbind", f"/{path}", root / path)
        run("mount", "-t", "tmpfs", "tmpfs", root / "run")
        for source, place in [("layers", "layers"), ("criu", "tools/criu")]:
            (root / "var/lib/cofferdam" / place).mkdir(parents=True)
            run("mount", "--bind", TARGET / source, root / "var/lib/cofferdam" / place)
        turn = 'cd "$1" && pivot_root . mnt && exec chroot . sh -c "umount -l /mnt; echo ready; exec sleep infinity"'
        self.holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", turn, "sh", str(root)], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "ready\n"

    def words(self, *words):
        return ["nsenter", f"--target={self.holder.pid}", "--mount", "--root", "--wd=/", *words]

    def run(self, *words):
        return run(*self.words(*words))

    def install(self, package):
        (self.root / "tmp/package.deb").write_bytes(package.read_bytes())
        return self.run("dpkg", "--install", "/tmp/package.deb")

    def serve(self):
        """Starts the server as the unit does; returns its process and address."""
        line = next(line for line in self.run("cat", UNIT).splitlines() if line.startswith("ExecStart="))
        command = line.removeprefix("ExecStart=").split()
        server = subprocess.Popen(self.words(*command), stdout=subprocess.PIPE, stderr=open("/dev/null"), text=True)
        self.server = server
        line = server.stdout.readline()
        assert line.startswith("listening on "), line
        return server, line.split()[-1]

    def close(self):
        if self.server and self.server.poll() is None:
            stop(self.server)
        self.holder.kill()
        self.holder.wait()


def stop(server):
    """As the service manager does: the main process alone."""
    server.terminate()
    server.wait()


def walk(host):
    from e2b import Sandbox

    told = host.install(FIRST)
    assert "quickstart --setup-only" in told, told
    assert host.run("cofferdam", "--version").startswith("cofferdam ")
    assert "settings, all correct" in host.run("cofferdam", "config", "check")
    run("systemd-analyze", "verify", "--man=no", f"--root={host.root}", UNIT)
    for page in ["cofferdam.1", "cofferdam-serve.1"]:
        assert any((host.root / "usr/share/man/man1").glob(f"{page}*")), page
    config = host.root / "etc/cofferdam/cofferdam.toml"
    config.write_text("listen = '127.0.0.1:0'\npool = 0\n")
    server, url = host.serve()
    print("installed and started:", url)
    key = host.run("cofferdam", "key", "create", "--name", "walk").strip().splitlines()[-1].split()[-1]
    options = {"api_key": key, "api_url": url, "sandbox_url": url}
    sandbox = Sandbox.create(**options)
    counting = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done"
    sandbox.commands.run(counting, background=True, timeout=0)
    paused = Sandbox.create(**options)
    paused.commands.run("echo kept > /dev/shm/memory")
    paused.pause()

    told = host.install(SECOND)
    assert config.read_text().startswith("listen"), "the operator's settings were replaced"
    assert "second" in host.run("dpkg-query", "--show", "cofferdam")
    begun = time.monotonic()
    stop(server)
    server, url = host.serve()
    print(f"upgraded; the server was away for {time.monotonic() - begun:.2f} s")
    options |= {"api_url": url, "sandbox_url": url}
    sandbox = Sandbox.connect(sandbox.sandbox_id, **options)
    first = int(sandbox.files.read("/tmp/count"))
    while int(sandbox.files.read("/tmp/count") or first) <= first:
        pass
    paused = Sandbox.connect(paused.sandbox_id, **options)
    assert paused.files.read("/dev/shm/memory") == "kept\n"
    for one in (sandbox, paused):
        one.kill()
    stop(server)

    host.run("dpkg", "--remove", "cofferdam")
    assert config.exists() and not (host.root / "usr/bin/cofferdam").exists()
    told = host.run("dpkg", "--purge", "cofferdam")
    assert not config.parent.exists() and (host.root / "var/lib/cofferdam/cofferdam.db").exists()
    assert "remove it by hand" in told, told
    print("removed and purged; the data directory is left")


directory = pathlib.Path(tempfile.mkdtemp(prefix="cofferdam-walk-"))
host = Host(directory / "root")
try:
    walk(host)
finally:
    host.close()
    run("umount", "--recursive", "--lazy", host.root)
    # Nothing of the host may be below it when it is removed.
    assert str(directory) not in pathlib.Path("/proc/self/mountinfo").read_text()
    run("rm", "--recursive", "--one-file-system", directory)
