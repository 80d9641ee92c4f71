"""What a server has created on this host, seen from outside: control groups, processes, dumps, mounts, loop devices, writable trees."""

import hashlib
import os
import pathlib
import time

GROUPS = pathlib.Path("/sys/fs/cgroup")


def instance(data):
    """The name of the server of a data directory, which everything it creates on the host contains."""
    return "cofferdam-" + hashlib.sha256(os.fsencode(pathlib.Path(data).resolve())).hexdigest()[:12]


def groups(data):
    """Names of the server's control groups, in any hierarchy."""
    name = instance(data)
    tops = [top for top in [GROUPS / name, *GROUPS.glob(f"*/{name}")] if top.is_dir()]
    return {group.name for top in tops for group in top.iterdir() if group.is_dir()}


def processes(data):
    """Processes in the server's control groups, as a dict of pid to group, without zombies."""
    mark, found = f"/{instance(data)}/", {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        text = read(f"/proc/{pid}/cgroup")
        if mark in text and "State:\tZ" not in read(f"/proc/{pid}/status"):
            found[int(pid)] = text.split(mark)[1].split("\n")[0].split("/")[0]
    return found


def dumps(data):
    """Pids of CRIU processes that work for the server, in whatever control group: they have its directories open. CRIU changes its
    command line, but not the loader that it is run with."""
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


def serving(data):
    """Pids of the processes that serve the files in which the server's containers see their own size."""
    name = instance(data).encode()
    commands = {int(pid): read(f"/proc/{pid}/cmdline").encode() for pid in filter(str.isdigit, os.listdir("/proc"))}
    return [pid for pid, command in commands.items() if b"\0resource-files\0" in command and name in command]


def mounts(data):
    return [line for line in read("/proc/self/mountinfo").splitlines() if str(data) in line or instance(data) in line]


def loop_devices(data):
    files = pathlib.Path("/sys/block").glob("loop*/loop/backing_file")
    return [file.parent.parent.name for file in files if read(file).startswith(str(data))]


def states(server):
    """Names of saved snapshots: each is a directory, or a JSON file with a journal beside it for a moment. Unfinished ones have a dot in
    their name."""
    files = {path.name for path in (server.home / "snapshots").iterdir()}
    journals = {name for name in files if name.endswith(".pages") and name.replace(".pages", ".json") in files}
    return [name.removesuffix(".json") for name in files - journals]


def dir_of_volumes(server):
    """The directory of writable trees, which is mounted in no visible place, but open in the server."""
    found = []
    for entry in os.scandir(f"/proc/{server.process.pid}/fd"):
        try:
            names = os.listdir(entry.path)
        except OSError:
            continue
        if ".trash" in names:
            # Each engine has writable trees of its own; only those of microVMs contain blank disks.
            is_of_machines = any(name.startswith("blank-") for name in names)
            found.append((is_of_machines == (server.home != server.data), entry.path))
    assert found, "the server has no volumes open"
    return max(found)[1]


def volumes(server):
    """Names of the server's writable trees."""
    return {name for name in os.listdir(dir_of_volumes(server)) if not name.startswith(".")}


def bytes_in_volumes(server):
    disk = os.statvfs(dir_of_volumes(server))
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def network_namespaces(data):
    """Network namespaces of the server's processes."""
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
    """Calls `look` until it finds nothing or the time is up, and returns what it found last."""
    until = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.05)
    return found
