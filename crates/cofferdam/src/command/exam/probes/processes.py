"""Privileges, and processes, memory and names of others."""

import glob
import hashlib
import re
import socket

HARMLESS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 18, 19, 29, 31}
CAPABILITIES = {12: "NET_ADMIN", 14: "IPC_LOCK", 15: "IPC_OWNER", 16: "SYS_MODULE", 17: "SYS_RAWIO", 20: "SYS_PACCT", 21: "SYS_ADMIN", 22: "SYS_BOOT",
                23: "SYS_NICE", 24: "SYS_RESOURCE", 25: "SYS_TIME", 26: "SYS_TTY_CONFIG", 27: "MKNOD", 30: "AUDIT_CONTROL", 32: "MAC_OVERRIDE",
                33: "MAC_ADMIN", 34: "SYSLOG", 35: "WAKE_ALARM", 37: "AUDIT_READ", 38: "PERFMON", 39: "BPF", 40: "CHECKPOINT_RESTORE", 9: "LINUX_IMMUTABLE"}


def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    raise Skip(f"no {field} in /proc/self/status")


@case("privileges", "has capabilities that mean something to the host", "ESCAPE")
def dangerous_capabilities():
    bounding = int(status("CapBnd"), 16)
    have = [name for bit, name in CAPABILITIES.items() if bounding >> bit & 1]
    return f"may have {have}" if have else None


@case("privileges", "is the host's root", "ESCAPE")
def root_of_the_host():
    outside = int(open("/proc/self/uid_map").read().split()[1])
    return f"user id 0 is the host's {outside}" if outside == 0 else None


@case("privileges", "runs without a system call filter", "ESCAPE")
def no_filter():
    return None if status("Seccomp") == "2" else "no seccomp filter"


@case("processes", "sees processes of the host", "READ")
def processes_of_the_host():
    wanted = PLANTED["process"].encode()
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if wanted in reads(path):
                return f"{path} is the planted process"
        except OSError:
            continue
    return None


@case("processes", "signals the planted process by its number", "CRASH")
def signals_the_host():
    os.kill(PLANTED["pid"], 0)
    if PLANTED["process"].encode() in reads(f"/proc/{PLANTED['pid']}/cmdline"):
        return "the planted process can be signalled"
    return None


@case("processes", "reads memory of the planted process", "READ")
def memory_of_the_host():
    return opens(f"/proc/{PLANTED['pid']}/mem") if PLANTED["process"].encode() in reads(f"/proc/{PLANTED['pid']}/cmdline") else None


@case("processes", "connects to the planted abstract socket of the host", "ESCAPE")
def abstract_socket():
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect("\0" + PLANTED["abstract"])
    return "connected"


@case("processes", "finds secrets of the server in envd's memory, environment or command line", "LEAK")
def secrets_in_envd():
    # Their SHA-256 only: the examiner brings no secret in here.
    digests = set(PLANTED["secret_digests"])
    if not digests:
        raise Skip("no secret of the server is known to the examiner")
    places = [lambda path=path: reads(path, 1 << 20) for path in ["/proc/1/environ", "/proc/1/cmdline"]]

    def memory():
        content = b""
        with open("/proc/1/mem", "rb", 0) as file:
            for line in open("/proc/1/maps"):
                span, access, *_ = line.split()
                begin, end = (int(text, 16) for text in span.split("-"))
                if "r" in access and "[v" not in line and end - begin < 1 << 26:
                    try:
                        file.seek(begin)
                        content += file.read(end - begin)
                    except (OSError, ValueError):
                        continue
        return content

    for place in [*places, memory]:
        try:
            content = place()
        except OSError:
            continue
        texts = set(re.findall(rb"(?:e2b_)?[0-9a-f]{40,64}", content))
        if any(hashlib.sha256(text).hexdigest() in digests for text in texts):
            return "a secret was found"
    return None


@case("processes", "shares System V shared memory with the host", "READ")
def shared_memory():
    segments = open("/proc/sysvipc/shm").read().splitlines()[1:]
    return f"{len(segments)} segments" if segments else None


@case("processes", "sees the host's name", "LEAK")
def host_name():
    names = {socket.gethostname(), os.uname().nodename}
    return "the host's name" if PLANTED["hostname"] in names else None
