"""What a server has made of this machine, looked at from outside: groups, processes, dumps, mounts, loop devices, volumes."""

import hashlib
import os
import pathlib
import time

GROUPS = pathlib.Path("/sys/fs/cgroup")


def instance(data):
    """The name that everything of this data directory's server carries."""
    return "cofferdam-" + hashlib.sha256(os.fsencode(pathlib.Path(data).resolve())).hexdigest()[:12]


def groups(data):
    """Names of its control groups, in any hierarchy."""
    name = instance(data)
    tops = [top for top in [GROUPS / name, *GROUPS.glob(f"*/{name}")] if top.is_dir()]
    return {group.name for top in tops for group in top.iterdir() if group.is_dir()}


def processes(data):
    """Who runs in which of its groups: pid to group. The dead that nobody has waited for yet run no more."""
    mark, found = f"/{instance(data)}/", {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        text = read(f"/proc/{pid}/cgroup")
        if mark in text and "State:\tZ" not in read(f"/proc/{pid}/status"):
            found[int(pid)] = text.split(mark)[1].split("\n")[0].split("/")[0]
    return found


def dumps(data):
    """CRIUs at work for it, in whatever group: they have its directories open. Once one is asked something it changes its command
    line, but not the loader that it runs from."""
    dir, found = os.path.realpath(data), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            is_loader = os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("ld-linux")
            if not is_loader and "swrk" not in read(f"/proc/{pid}/cmdline"):
                continue
            files = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if any(file.startswith(dir) for file in files):
            found.add(int(pid))
    return found


def mounts(data):
    return [line for line in read("/proc/self/mountinfo").splitlines() if str(data) in line or instance(data) in line]


def loop_devices(data):
    files = pathlib.Path("/sys/block").glob("loop*/loop/backing_file")
    return [file.parent.parent.name for file in files if read(file).startswith(str(data))]


def states(server):
    """Names of captured states: each is a directory, or a note and for a moment a journal beside it. What is half of one has a dot in its name."""
    files = {path.name for path in (server.home / "snapshots").iterdir()}
    journals = {name for name in files if name.endswith(".pages") and name.replace(".pages", ".json") in files}
    return [name.removesuffix(".json") for name in files - journals]


def dir_of_volumes(server):
    """They are mounted where no path leads, but the server's own descriptors do."""
    found = []
    for entry in os.scandir(f"/proc/{server.process.pid}/fd"):
        try:
            names = os.listdir(entry.path)
        except OSError:
            continue
        if ".trash" in names:
            # Engines have volumes of their own; only machines begin with blank disks.
            is_of_machines = any(name.startswith("blank-") for name in names)
            found.append((is_of_machines == (server.home != server.data), entry.path))
    assert found, "the server has no volumes open"
    return max(found)[1]


def volumes(server):
    """Names of its volumes."""
    return {name for name in os.listdir(dir_of_volumes(server)) if not name.startswith(".")}


def bytes_in_volumes(server):
    disk = os.statvfs(dir_of_volumes(server))
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def network_namespaces(data):
    """Those that its processes are in."""
    found = set()
    for pid in processes(data):
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            pass
    return found


def read(path):
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return ""


def settled(look, seconds=10):
    """What `look` finds once it finds nothing, or after this time: what is on its way out may take a moment."""
    until = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.05)
    return found
