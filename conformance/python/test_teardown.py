"""A sandbox that holds as many kernel objects of a kind as it can get is still killed soon: the end of a process closes what it has, and
closing must not wait for the kernel once for each object.
"""

import time

import pytest
from conftest import options_of
from e2b import Sandbox
from server import Server

pytestmark = [pytest.mark.container, pytest.mark.alone]

# Makes objects until the kernel refuses, in several processes where the limit is one of each process, and then sleeps with them.
PROGRAM = r"""
import ctypes, errno, fcntl, mmap, os, resource, select, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
kind, processes = sys.argv[1], int(sys.argv[2])
kept, made = [], 0

def call(number, *args):
    answer = libc.syscall(number, *args)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer

def pressure():
    fd = os.open('/proc/pressure/' + ('cpu', 'io', 'memory')[made % 3], os.O_RDWR)
    os.write(fd, b'some 500000 2000000\0')
    kept.append(fd)

def descriptors():
    kept.append(os.dup(0))

def epolls():
    # Each in the one before it, up to the kernel's depth; and all of them at one pipe.
    new = select.epoll()
    kept.append(new)
    if made % 4:
        new.register(kept[-2].fileno(), select.EPOLLIN)
    elif made < 200:
        # The kernel limits the number of paths to one file.
        new.register(pipe_[0], select.EPOLLIN)

def inotify():
    fd = call(294, 0)
    for path in dirs_:
        call(254, fd, path, 0xfff)
    kept.append(fd)

def marks():
    if not kept:
        kept.append(call(294, 0))
    os.mkdir(f'/tmp/m{os.getpid()}-{made}')
    call(254, kept[0], f'/tmp/m{os.getpid()}-{made}'.encode(), 0xfff)

def dnotify():
    fd = os.open('/tmp', os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_MODIFY | fcntl.DN_MULTISHOT)
    kept.append(fd)

def timers():
    call(222, 0, 0, ctypes.byref(ctypes.c_int()))

def timerfds():
    fd = call(283, 0, 0)
    call(286, fd, 3, struct.pack('4q', 1000, 0, 1000, 0), 0)
    kept.append(fd)

def listeners():
    new = socket.socket(socket.AF_INET6)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    new.bind(('::', 9999))
    new.listen()
    kept.append(new)

def connections():
    kept.append(socket.create_connection(('127.0.0.1', port_)))
    kept.append(server_.accept()[0])

def in_flight():
    # Descriptors that are only in messages: the kernel's collector has to find them.
    one, two = socket.socketpair()
    one.setblocking(False)
    socket.send_fds(one, [b'x'], [one.fileno(), two.fileno()])
    kept.extend([one, two])

def filters():
    new = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    program = struct.pack('HBBI', 6, 0, 0, 0xffffffff)
    buffer = ctypes.create_string_buffer(program)
    new.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HxxxxxxP', 1, ctypes.addressof(buffer)))
    kept.append(new)

def netlink():
    new = socket.socket(16, socket.SOCK_RAW, 0)
    new.bind((0, 1))
    kept.append(new)

def queues():
    kept.append(call(240, f'q{os.getpid()}-{made}'.encode(), os.O_RDWR | os.O_CREAT, 0o600, struct.pack('8q', 0, 1, 1, 0, 0, 0, 0, 0)))

def sysv():
    call(64, 0, 1, 0o1600)
    call(29, 0, 4096, 0o1600)
    call(68, 0, 0o1600)

def mappings():
    # Different protection keeps the kernel from merging neighbours.
    kept.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ | (mmap.PROT_WRITE if made % 2 else 0)))

def locks():
    if not kept:
        kept.append(open(f'/tmp/locks{os.getpid()}', 'w'))
    if made >= 200_000:
        raise OSError(errno.EMFILE, 'enough')
    fcntl.lockf(kept[0], fcntl.LOCK_EX, 1, made * 2)

def leases():
    fd = os.open(f'/tmp/lease{os.getpid()}-{made}', os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    kept.append(fd)

def terminals():
    kept.extend(os.openpty())

def pipes():
    kept.extend(os.pipe())

def memfds():
    kept.append(os.memfd_create('x'))
    os.ftruncate(kept[-1], 1 << 40)
    os.write(kept[-1], b'x')

def pidfds():
    kept.append(os.pidfd_open(os.getpid()))

def mounts():
    kept.append(open('/proc/self/mountinfo'))
    kept[-1].read(1)

def signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    call(129, os.getpid(), 40, struct.pack('iiiiQQ', 40, 0, -1, 0, 0, 0) + bytes(96))

def seccomp():
    # A stack of filters, each longer than one page.
    libc.prctl(38, 1, 0, 0, 0)
    program = struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000) * 500
    buffer = ctypes.create_string_buffer(program)
    call(317, 1, 0, struct.pack('HxxxxxxP', 500, ctypes.addressof(buffer)))

def landlock():
    fd = call(444, struct.pack('Q', 1), 8, 0)
    kept.append(fd)

def threads():
    import threading
    threading.stack_size(65536)
    if made >= 800:
        raise OSError(errno.EAGAIN, 'enough: the rest is for our own commands')
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

def memory():
    kept.append(mmap.mmap(-1, 1 << 20))
    kept[-1].write(b'x' * (1 << 20))
    if made >= 300:
        raise OSError(errno.ENOMEM, 'enough')

def deep():
    if made >= 20_000:
        raise OSError(errno.EMFILE, 'enough')
    os.mkdir('d')
    os.chdir('d')

def aio():
    call(206, 1, ctypes.byref(ctypes.c_ulong()))

def perf():
    kept.append(call(298, struct.pack('2I', 1, 120) + bytes(112), 0, -1, -1, 0))

def userfaults():
    kept.append(call(323, 1))

def keys():
    call(248, b'user', b'k%d-%d' % (os.getpid(), made), b'x', 1, -2)

def namespaces():
    call(272, 0x10000000)

if kind != 'descriptors':
    # Otherwise Python's own memory for what holds them reaches the sandbox's limit before the kernel's objects count.
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
children = []
for _ in range(processes - 1):
    child = os.fork()
    if child == 0:
        break
    children.append(child)
# Opened first: later there may be no descriptor left for it.
report = open(f'/root/made-{os.getpid()}', 'w')
os.makedirs(f'/tmp/p{os.getpid()}')
os.chdir(f'/tmp/p{os.getpid()}')
pipe_ = os.pipe()
dirs_ = [b'/tmp', b'/', b'/usr', b'/etc']
server_ = socket.create_server(('127.0.0.1', 0), backlog=100)
port_ = server_.getsockname()[1]
until = time.monotonic() + 3
why = 'time'
while time.monotonic() < until:
    try:
        globals()[kind]()
    except (OSError, MemoryError, ValueError) as error:
        why = str(error)
        break
    made += 1
report.write(f'{made} {why}\n')
report.flush()
while True:
    time.sleep(1000)
"""

# What a sandbox can have, and how many processes have as many as they can.
POSSIBLE = {
    "descriptors": 50, "epolls": 4, "inotify": 1, "marks": 1, "timers": 8, "timerfds": 8, "listeners": 1,
    "connections": 2, "in_flight": 4, "netlink": 4, "queues": 1, "sysv": 1, "mappings": 4, "locks": 1,
    "terminals": 1, "pipes": 4, "memfds": 4, "pidfds": 4, "mounts": 4, "signals": 1, "seccomp": 50, "threads": 1, "memory": 1, "deep": 1,
}
# What it cannot have at all. Captures would lose Landlock. Closing a trigger of `pressure` waits for RCU, and a watch of `dnotify` for a walk over all others.
# Whoever opens a file with a lease has to wait, also the server.
REFUSED = ["landlock", "pressure", "dnotify", "leases", "filters", "aio", "perf", "userfaults", "keys", "namespaces"]


@pytest.fixture(scope="module")
def own():
    server = Server("--pool", "0", "--slots", "2")
    yield server
    server.stop()


def hold(options, kind, processes):
    """Returns a sandbox whose processes hold what they could get, and what each said."""
    sandbox = Sandbox.create(timeout=600, **options)
    sandbox.files.write("/root/hold.py", PROGRAM, user="root")
    sandbox.commands.run(f"exec python3 /root/hold.py {kind} {processes}", user="root", background=True, timeout=0)
    ready = f"until [ $(cat /root/made-* 2>/dev/null | wc -l) -eq {processes} ]; do sleep 0.1; done; cat /root/made-*"
    try:
        return sandbox, sandbox.commands.run(ready, user="root", timeout=30).stdout.splitlines()
    except Exception:
        sandbox.kill()
        raise


@pytest.mark.parametrize("kind", POSSIBLE)
def test_a_sandbox_full_of_kernel_objects_is_killed_soon(own, kind):
    sandbox, said = hold(options_of(own), kind, POSSIBLE[kind])
    begin = time.monotonic()
    assert sandbox.kill() is True
    took = time.monotonic() - begin
    print(kind, POSSIBLE[kind], said[0], f"{took:.2f} s")
    assert any(int(line.split()[0]) > 0 for line in said), f"nothing could be made: {said}"
    assert took < 8, f"{took:.1f} s with {said}"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_make_kills_slow_is_refused(own, kind):
    sandbox, said = hold(options_of(own), kind, 1)
    assert sandbox.kill() is True
    assert said[0].startswith("0 "), said
