"""Makes Python kernels by forking a process that has everything imported: a tenth of a second instead of one.

Standard input is a socket: a line {"fork": id, "connection_file", "cwd", "env"} asks for a kernel; lines {"ready"},
{"started"}, {"listening"} (from the kernel itself) and {"exited"} go back. Nothing here starts a thread or a ZeroMQ context, which would not survive a fork.
"""

import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import sysconfig

# Before anything is imported: matplotlib reads its backend once.
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
# The debugger, which no client uses, would cost a quarter of a second and eight megabytes.
sys.modules["debugpy"] = None


def preload(names):
    for name in ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "ipykernel.zmqshell", "sqlite3", "pdb",
                 "IPython.core.history", "IPython.core.completer", "matplotlib_inline"):
        importlib.import_module(name)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # The module is optional; a broken package must not break Python as a whole.
            print(f"not preloaded: {name}: {error}", file=sys.stderr)


def site_packages():
    return sorted({path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
                  | {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def reseed():
    """Copies of a process, or of a whole sandbox, must not draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(32), 32.0)


def tell(control, **message):
    # One short write, so that lines of two processes are not mixed.
    control.sendall(json.dumps(message).encode() + b"\n")


def become_kernel(control, request):
    """Runs in the child, and returns only when the kernel has ended."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # Output of a kernel's libraries before it listens goes to the interpreter's log by descriptor 2.
    os.dup2(2, 1)
    os.close(null)
    os.environ.update(request["env"])
    try:
        os.chdir(request["cwd"])
    except OSError:
        pass
    reseed()
    sys.argv = ["ipykernel_launcher", "-f", request["connection_file"]]
    sys.path[:] = [path for path in sys.path if path]
    import kernel

    def listening():
        tell(control, listening=request["fork"])
        control.close()

    kernel.run(request["connection_file"], listening)


def main():
    control = socket.socket(fileno=os.dup(0))
    wakeup, wake = socket.socketpair()
    wake.setblocking(False)
    preload([name for name in os.environ.pop("INTERPRETER_PRELOAD", "").split(",") if name])
    import kernel  # noqa: F401  # compiled once, here

    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Interrupts are for kernels, not for the zygote.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake.fileno())

    tell(control, ready=True, paths=site_packages())
    pending = b""
    while True:
        readable, _, _ = select.select([control, wakeup], [], [])
        if wakeup in readable:
            wakeup.recv(4096)
            while (ended := ended_child()) is not None:
                tell(control, exited=ended[0], code=ended[1])
        if control not in readable:
            continue
        received = control.recv(1 << 16)
        if not received:
            return None
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            # Its start is reported before its end can be: ends are read above.
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                wakeup.close()
                wake.close()
                return control, request
            tell(control, started=request["fork"], pid=child)


def ended_child():
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


if __name__ == "__main__":
    # Leave `main` first, so that a kernel has none of its frames below it.
    forked = main()
    if forked is None:
        # Without destroying all imported modules.
        os._exit(0)
    become_kernel(*forked)
