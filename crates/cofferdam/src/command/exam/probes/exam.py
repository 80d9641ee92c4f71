"""The frame of the exam's probes: runs every case of this file and those that were put before it, and prints a line of JSON for each.

A case is a function that attacks. It returns None when the attack was held off, a text when it got through, and `Skip` when the attack needs something that is
not there. An OSError that it does not catch means that the kernel refused: held off. Any other exception is an error of the case, which fails the exam.

Cases change nothing: where getting through would do harm, opening for writing is the proof.
"""

import ctypes
import errno
import json
import os
import signal
import sys

CASES = []
libc = ctypes.CDLL(None, use_errno=True)
# What the examiner planted: paths, ports and the text that must not be read, by name.
PLANTED = {}


class Skip(Exception):
    pass


def case(family, tries, proof):
    """Registers a case. `proof`: READ, WRITE, CRASH, STALL, ESCAPE or LEAK, what getting through would be."""

    def register(function):
        CASES.append((family, function.__name__, tries, proof, function))
        return function

    return register


def syscall(number, *arguments):
    """Makes a system call; raises OSError if it is refused."""
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments])
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def opens(path, flags=os.O_RDONLY):
    """Returns a text if the file can be opened."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    os.close(descriptor)
    return f"opened {path}"


def reads(path, limit=65536):
    with open(path, "rb", buffering=0) as file:
        return file.read(limit)


def first(attempts):
    """Returns the first text of several attempts; refusals are passed over."""
    for attempt in attempts:
        try:
            text = attempt()
        except OSError:
            continue
        if text:
            return text
    return None


# Families about what a sandbox shares with the host's kernel. Root of a guest may do as it likes to the guest's own.
SHARED_KERNEL = {"kernel", "privileges", "resources", "settings"}


def run_case(family, name, tries, proof, function):
    try:
        if PLANTED["own_kernel"] and family in SHARED_KERNEL:
            raise Skip("the kernel is the guest's own")
        got = function()
        outcome, detail = ("held", "") if got is None else ("broken", got)
    except OSError as error:
        outcome, detail = "held", error.strerror or str(error)
    except Skip as reason:
        outcome, detail = "skipped", str(reason)
    except BaseException as error:
        outcome, detail = "error", f"{type(error).__name__}: {error}"
    return {"family": family, "id": name, "tries": tries, "proof": proof, "outcome": outcome, "detail": detail[:500]}


def in_child(case_, limit):
    """Runs a case in a process of its own, which may be killed for what it tries."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(limit)
        os.write(writer, json.dumps(run_case(*case_)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.read()
    _, status = os.waitpid(child, 0)
    if line:
        return json.loads(line)
    family, name, tries, proof, _ = case_
    detail = f"the process was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no result"
    return {"family": family, "id": name, "tries": tries, "proof": proof, "outcome": "held", "detail": detail}


def main():
    # In a file and not on the command line, which attacks look through.
    with open(sys.argv[1]) as file:
        PLANTED.update(json.load(file))
    for case_ in CASES:
        print(json.dumps(in_child(case_, 30)), flush=True)
