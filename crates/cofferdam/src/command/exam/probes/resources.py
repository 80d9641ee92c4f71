"""Limits: memory, processes, descriptors. Bounded attempts, none of which harms a host whose limits hold."""

import resource
import time


@case("resources", "takes all of the host's memory", "CRASH")
def memory():
    total = int(next(line for line in open("/proc/meminfo") if line.startswith("MemTotal")).split()[1]) << 10
    limit = PLANTED["memory_mib"] << 20
    child = os.fork()
    if child == 0:
        try:
            taken = bytearray(limit + (256 << 20))
            for at in range(0, len(taken), 4096):
                taken[at] = 1
        except MemoryError:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return f"wrote more than {limit} bytes of {total}" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else None


@case("resources", "makes more processes than one sandbox may have", "STALL")
def processes():
    children = []
    refused = False
    while len(children) < 5000:
        try:
            child = os.fork()
        except OSError:
            refused = True
            break
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    return None if refused else "5,000 processes"


@case("resources", "raises its own limits", "STALL")
def own_limits():
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        # Python's word for EPERM.
        return None
    return f"RLIMIT_NPROC was {hard} and is unlimited"


@case("resources", "takes real-time priority, to starve the host's processes", "STALL")
def real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    return "SCHED_FIFO"


@case("resources", "locks memory that cannot be swapped, beyond its limit", "STALL")
def locked_memory():
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return "no limit of locked memory" if limit == resource.RLIM_INFINITY else None


@case("resources", "opens as many terminals as the host has", "STALL")
def terminals():
    import pty

    held = []
    try:
        while len(held) < 1000:
            held.append(pty.openpty())
    except OSError:
        return None
    return f"{len(held)} terminals"


@case("resources", "changes the clock", "WRITE")
def clock():
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 100000)
    return "the clock was set"
