"""What ordinary programs hold while their memory is captured: all of it works on in the original and in every copy, or the capture fails
with an error that names the program, the reason and a way out."""

import os
import pathlib
import re
import threading
import time

import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException
from services import started

pytestmark = pytest.mark.container

# Before each program: it prints "ready", waits until the file /tmp/go exists, and checks.
PROLOGUE = """
import array, ctypes, errno, fcntl, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def wait():
    print("ready", flush=True)
    while not os.path.exists("/tmp/go"):
        time.sleep(0.02)
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

SEMAPHORE = """
libc.sem_open.restype = ctypes.c_void_p
named = libc.sem_open(b"/kept", os.O_CREAT, 0o600, 2)
pointer = ctypes.c_void_p(named)
libc.sem_wait(pointer)
wait()
again = libc.sem_open(b"/kept", 0)
assert libc.sem_post(pointer) == 0
value = ctypes.c_int()
libc.sem_getvalue(ctypes.c_void_p(again), ctypes.byref(value))
assert value.value == 2, value.value
"""
MULTIPROCESSING = """
import multiprocessing
def work(queue, lock, event):
    event.wait()
    with lock:
        queue.put("done")
queue, lock, event = multiprocessing.Queue(), multiprocessing.Lock(), multiprocessing.Event()
workers = [multiprocessing.Process(target=work, args=(queue, lock, event)) for _ in range(3)]
for worker in workers: worker.start()
wait()
event.set()
assert [queue.get(timeout=20) for _ in workers] == ["done"] * 3
"""
HARD_LINKED = """
os.makedirs("/tmp/cache")
with open("/tmp/cache/lib.so", "wb") as file: file.write(b"old" * 10000)
os.link("/tmp/cache/lib.so", "/tmp/lib.so")
file = open("/tmp/lib.so", "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
with open("/tmp/new.so", "wb") as new: new.write(b"new" * 10000)
os.rename("/tmp/new.so", "/tmp/lib.so")
names = sorted(os.listdir("/tmp"))
wait()
assert mapped[:3] == b"old" and file.read(3) == b"old"
assert open("/tmp/lib.so", "rb").read(3) == b"new"
left = set(os.listdir("/tmp")) - set(names) - {"go"}
assert not left, left
"""
# As `apt upgrade` does it, with a library that the template has and one that is loaded.
REPLACED = """
path = os.path.realpath("/usr/lib/x86_64-linux-gnu/libz.so.1")
before = open(path, "rb").read()
import zlib
loaded = ctypes.CDLL(path)
subprocess.run(["cp", path, path + ".new"], check=True)
os.rename(path + ".new", path)
assert "(deleted)" in open("/proc/self/maps").read()
wait()
assert zlib.decompress(zlib.compress(b"x" * 1000)) == b"x" * 1000
loaded.zlibVersion.restype = ctypes.c_char_p
assert loaded.zlibVersion()
assert open(path, "rb").read() == before
"""
TAIL = """
log = open("/tmp/log", "w")
tail = subprocess.Popen(["tail", "-f", "/tmp/log"], stdout=subprocess.PIPE)
log.write("first\\n"); log.flush()
assert tail.stdout.readline() == b"first\\n"
os.unlink("/tmp/log")
wait()
log.write("second\\n"); log.flush()
assert tail.stdout.readline() == b"second\\n"
tail.kill()
"""
DELETED = """
file = open("/tmp/big", "w+b")
block = os.urandom(1 << 20)
for _ in range(100): file.write(block)
file.flush()
os.unlink("/tmp/big")
wait()
file.seek(99 << 20)
assert file.read() == block and os.fstat(file.fileno()).st_size == 100 << 20
"""
PIPES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
pipes = [os.pipe() for _ in range({count})]
for number, (_, end) in enumerate(pipes): os.write(end, b"%d" % number)
wait()
for number, (end, _) in enumerate(pipes): assert os.read(end, 100) == b"%d" % number
"""
NOT_ACCEPTED = """
listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/socket")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("/tmp/socket")
{more}
wait()
link, _ = listener.accept()
client.sendall(b"later")
assert link.recv(100) == b"{more_data}later"
"""
NO_LANDLOCK = """
try:
    must(libc.syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0))
    raise AssertionError("Landlock exists")
except OSError as error:
    assert error.errno == errno.ENOSYS, error
# It confines itself where it can.
packed = subprocess.run(["xz", "-c"], input=b"text" * 1000, stdout=subprocess.PIPE, check=True).stdout
unpacking = subprocess.Popen(["xz", "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
wait()
assert unpacking.communicate(packed)[0] == b"text" * 1000
"""
# In C, as Python repeats interrupted calls itself. Each call is made by a thread and by a process of its own: CRIU treats the first thread of a
# process in another way.
WAITS = """
class Timespec(ctypes.Structure): _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]
SECONDS = 3
def spec(): return ctypes.byref(Timespec(SECONDS, 0))
def until(clock): return ctypes.byref(Timespec(int(time.clock_gettime(clock)) + SECONDS + 1, 0))
def nanosleep(): return libc.nanosleep(spec(), None)
def nanosleep_rest():
    t = Timespec(SECONDS, 0)
    return libc.nanosleep(ctypes.byref(t), ctypes.byref(t))
def clock_nanosleep(): return libc.syscall(230, 1, 0, spec(), None)
def clock_nanosleep_absolute(): return libc.syscall(230, 1, 1, until(1), None)
def poll(): return libc.poll(None, 0, SECONDS * 1000)
def ppoll(): return libc.ppoll(None, 0, spec(), None)
def select_(): return libc.select(0, None, None, None, spec())
def epoll_wait():
    e = select.epoll(); return libc.epoll_wait(e.fileno(), ctypes.create_string_buffer(100), 5, SECONDS * 1000)
def epoll_pwait2():
    e = select.epoll(); return libc.syscall(441, e.fileno(), ctypes.create_string_buffer(100), 5, spec(), None, 8)
def futex(): return libc.syscall(202, ctypes.byref(ctypes.c_int(0)), 0, 0, spec(), None, 0)
def sem_timedwait():
    sem = ctypes.create_string_buffer(32); libc.sem_init(sem, 0, 0); return libc.sem_timedwait(sem, until(0))
def sigtimedwait():
    mask = ctypes.c_uint64(1 << (signal.SIGUSR1 - 1)); libc.sigprocmask(0, ctypes.byref(mask), None)
    return libc.syscall(128, ctypes.byref(mask), None, spec(), 8)
def socket_pair():
    a, b = socket.socketpair()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
    return a, b
def recv():
    a, b = socket_pair(); return libc.recv(a.fileno(), ctypes.create_string_buffer(9), 9, 0)
def read():
    a, b = socket_pair(); return libc.read(a.fileno(), ctypes.create_string_buffer(9), 9)
def accept():
    l = socket.create_server(("127.0.0.1", 0))
    l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
    return libc.accept(l.fileno(), None, None)
def semtimedop():
    s = must(libc.semget(0, 1, 0o1600)); return libc.semtimedop(s, struct.pack("Hhh", 0, -1, 0), 1, spec())
ALL = [nanosleep, nanosleep_rest, clock_nanosleep, clock_nanosleep_absolute, poll, ppoll, select_, epoll_wait, epoll_pwait2, futex, sem_timedwait, sigtimedwait, recv, read, accept, semtimedop]
def run(call):
    begun = time.monotonic()
    result = call()
    number = ctypes.get_errno() if result < 0 else result
    return result, errno.errorcode.get(number, number), round(time.monotonic() - begun, 1)
def child(call):
    r, w = os.pipe()
    if not os.fork():
        os.write(w, repr((call.__name__, run(call))).encode()); os._exit(0)
    os.close(w)
    return r
children = [child(call) for call in ALL]
results = {}
def work(call): results[call.__name__] = run(call)
threads = [threading.Thread(target=work, args=(call,)) for call in ALL]
[t.start() for t in threads]
time.sleep(0.5)
wait()
[t.join() for t in threads]
for end in children:
    name, result = eval(os.read(end, 1000))
    results["child " + name] = result
# Some have an absolute time, which passes during a pause; none of the others is over early.
early = {name: result for name, result in results.items() if "EINTR" in result or result[2] < SECONDS - 0.1}
assert len(results) == 2 * len(ALL) and not early, early
"""
SHARED = """
maps = [mmap.mmap(-1, 4096) for _ in range({count})]
for number, map in enumerate(maps): map[0] = number % 251
wait()
for number, map in enumerate(maps): assert map[0] == number % 251
"""
# More than one user may have, but two.
LARGE_PIPES = """
SET, GET = 1031, 1032
def make():
    pipes = [os.pipe() for _ in range(50)]
    for end, _ in pipes: fcntl.fcntl(end, SET, 1 << 20)
    return pipes
end, other = os.pipe()
if not os.fork():
    os.setuid(1000)
    kept = make()
    os.write(other, b"x")
    time.sleep(1000)
os.read(end, 1)
pipes = make()
wait()
assert {fcntl.fcntl(end, GET) for end, _ in pipes} == {1 << 20}
"""
HALF_CLOSED = """
listener = socket.create_server(("127.0.0.1", 7001))
client = socket.create_connection(("127.0.0.1", 7001))
link, _ = listener.accept()
client.sendall(b"last")
client.shutdown(socket.SHUT_WR)
link.sendall(b"unread, ")
time.sleep(0.1)
wait()
link.settimeout(5); client.settimeout(5)
try:
    client.sendall(b"more")
    raise AssertionError("sent")
except BrokenPipeError:
    pass
assert link.recv(100) == b"last" and link.recv(100) == b""
link.sendall(b"reply")
link.close()
with client.makefile("rb") as rest: assert rest.read() == b"unread, reply"
"""
REUSE_PORT = """
def bound(kind):
    one = socket.socket(socket.AF_INET, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", 7001))
    return one
listeners = [bound(socket.SOCK_STREAM) for _ in range(3)]
for one in listeners: one.listen(100)
datagrams = [bound(socket.SOCK_DGRAM) for _ in range(3)]
wait()
listeners.append(bound(socket.SOCK_STREAM))
listeners[-1].listen(100)
bound(socket.SOCK_DGRAM)
clients = [socket.create_connection(("127.0.0.1", 7001)) for _ in range(100)]
time.sleep(0.2)
assert select.select(listeners, [], [], 0)[0] == listeners, "each gets some"
"""
# A restore creates one end after the other, and what is sent to one that does not exist yet must not end the connection.
SEND_QUEUE = """
listener = socket.create_server(("127.0.0.1", 7001))
client = socket.create_connection(("127.0.0.1", 7001))
link, _ = listener.accept()
client.setblocking(False)
sent = 0
try:
    while True: sent += client.send(b"x" * 65536)
except BlockingIOError:
    pass
wait()
link.settimeout(20)
while sent: sent -= len(link.recv(1 << 20))
"""
FULL_BACKLOG = """
listener = socket.socket()
listener.bind(("127.0.0.1", 7001))
listener.listen(0)
clients = [socket.socket() for _ in range(5)]
for client in clients:
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", 7001))
wait()
listener.settimeout(20)
listener.accept()
"""
TIMER = """
timer = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(timer, initial=0.01, interval=0.01)
wait()
for _ in range(5):
    assert select.select([timer], [], [], 20)[0], "it has stopped"
    os.read(timer, 8)
"""
SCHEDULING = """
SET, GET, BEST_EFFORT_7 = 251, 252, (2 << 13) | 7
others = []
def work():
    os.sched_setaffinity(0, {0})
    must(libc.syscall(SET, 1, 0, BEST_EFFORT_7))
    others.append(threading.get_native_id())
    time.sleep(1000)
threading.Thread(target=work, daemon=True).start()
while not others: time.sleep(0.01)
os.sched_setaffinity(0, {1})
wait()
assert os.sched_getaffinity(0) == {1} and os.sched_getaffinity(others[0]) == {0}
assert libc.syscall(GET, 1, others[0]) == BEST_EFFORT_7 and libc.syscall(GET, 1, 0) != BEST_EFFORT_7
"""
# Each is in vfork for a good part of its time.
SPAWNING = """
ends = []
def spawn():
    while not ends: subprocess.run(["true"])
spawners = [threading.Thread(target=spawn) for _ in range(2)]
for spawner in spawners: spawner.start()
wait()
ends.append(True)
for spawner in spawners: spawner.join()
"""
TRACED = """
child = os.fork()
if not child:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)
os.waitpid(child, 0)
libc.ptrace.argtypes = [ctypes.c_long] * 4
must(libc.ptrace(7, child, 0, 0))
wait()
"""
VFORK = """
child = subprocess.Popen(["python3", "-c", "import ctypes; c = ctypes.CDLL(None); c.syscall(58) or c.sleep(1000)"])
time.sleep(0.5)
wait()
subprocess.run(["pkill", "-fx", "python3 -c import ctypes.*"])
"""
PACKETS = """
ends = os.pipe2(os.O_DIRECT)
wait()
"""
THREAD_PIDFD = """
ids = []
threading.Thread(target=lambda: (ids.append(threading.get_native_id()), time.sleep(1000)), daemon=True).start()
while not ids: time.sleep(0.01)
must(libc.syscall(434, ids[0], os.O_EXCL))
wait()
"""
# Also names that are no text.
NAMES = r"""
file = open(b"/tmp/a\n\xff", "w+")
gone = open(b"/tmp/b\n\xfe", "w+")
gone.write("x"); gone.flush()
os.link(b"/tmp/b\n\xfe", b"/tmp/c\xfd")
os.unlink(b"/tmp/b\n\xfe")
wait()
gone.seek(0)
assert gone.read() == "x"
"""
PROCESS_DIR = """
kept = os.open("/proc/self", os.O_RDONLY)
wait()
"""
SHARED_MEMORY = """
stack = ctypes.create_string_buffer(1 << 16)
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
CLONE_VM = 0x100
child = must(libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.addressof(stack) + (1 << 16) - 64, CLONE_VM | signal.SIGCHLD, None))
wait()
os.kill(child, signal.SIGKILL)
"""
QUEUE = """
rt = ctypes.CDLL(None, use_errno=True)
must(rt.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None))
wait()
"""
WATCHED = """
watch = must(libc.inotify_init1(0))
file = open("/dev/shm/watched", "w")
must(libc.inotify_add_watch(watch, b"/dev/shm/watched", 2))
os.unlink("/dev/shm/watched")
wait()
"""
DEEP = """
os.chdir("/tmp")
[(os.mkdir("d"), os.chdir("d")) for _ in range(3000)]
wait()
"""

WORKS = {
    "named semaphore": SEMAPHORE,
    "multiprocessing": MULTIPROCESSING,
    "hard-linked library": HARD_LINKED,
    "replaced library": REPLACED,
    "tail of a removed log": TAIL,
    "deleted file of 100 MiB": DELETED,
    "900 pipes": PIPES.replace("{count}", "900"),
    "not accepted": NOT_ACCEPTED.replace("{more}", "").replace("{more_data}", ""),
    "no Landlock": NO_LANDLOCK,
    "interrupted waits": WAITS,
    "5,000 shared mappings": SHARED.replace("{count}", "5000"),
    "large pipes": LARGE_PIPES,
    "half-closed connection": HALF_CLOSED,
    "shared port": REUSE_PORT,
    "full send queue": SEND_QUEUE,
    "full backlog": FULL_BACKLOG,
    "timer that is due": TIMER,
    "scheduling": SCHEDULING,
    "spawning programs": SPAWNING,
    "names": NAMES,
}
NO_DESCRIPTOR_LEFT = """
import resource
files = []
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
ready = "ready"
while True:
    try: files.append(os.open("/tmp/program.py", os.O_RDONLY))
    except OSError: break
print(ready, flush=True)
signal.signal(signal.SIGALRM, lambda *_: None)
exists = libc.access
while exists(b"/tmp/go", 0): time.sleep(0.02)
os.close(files.pop())
"""
REFUSED = {
    "1,100 pipes": (PIPES.replace("{count}", "1100"), "more pipes open"),
    "not accepted, with data": (
        NOT_ACCEPTED.replace("{more}", "client.sendall(b'early')").replace("{more_data}", "early"),
        "nobody has accepted",
    ),
    "message queue": (QUEUE, "message queue"),
    "deep directory": (DEEP, "too long"),
    "watched file in /dev/shm": (WATCHED, "watches a file"),
    "traced": (TRACED, "traced"),
    "vfork": (VFORK, "vfork"),
    "directory of a process": (PROCESS_DIR, "directory of a process"),
    "shared memory of processes": (SHARED_MEMORY, "shares its memory"),
    "pipe of packets": (PACKETS, "packet mode"),
    "pidfd of a thread": (THREAD_PIDFD, "pidfd of a thread"),
    "no descriptor left": (NO_DESCRIPTOR_LEFT, "as many files open as it may"),
}


def start(sandbox, text):
    sandbox.files.write("/tmp/program.py", PROLOGUE + text)
    command = "exec 2> /tmp/errors; python3 /tmp/program.py; echo $? > /tmp/result"
    # As root, for files of the system.
    started(sandbox.commands.run(command, background=True, timeout=0, user="root"), "ready\n")


def check(sandbox, timeout=60):
    """Has the program check what it holds."""
    waits = "touch /tmp/go; until [ -s /tmp/result ]; do sleep 0.02; done; cat /tmp/errors /tmp/result"
    result = sandbox.commands.run(waits, timeout=timeout, user="root").stdout
    assert result == "0\n", result


def forked(sandbox, cold):
    (fork,) = sandbox.fork(count=1)
    assert isinstance(fork, Sandbox), fork
    return fork


@pytest.fixture
def cell(cold):
    sandbox = Sandbox.create(**cold)
    yield sandbox
    sandbox.kill()


# Each process ends as soon as one of its threads runs after the capture, while CRIU may still have others to release.
ENDS_AT_ONCE = """
def watch():
    while True:
        time.sleep(0.005)
        if os.path.exists("/tmp/armed") and time.time() > os.stat("/tmp/armed").st_mtime + 1:
            os._exit(0)
for _ in range(15):
    if os.fork() == 0:
        for _ in range(59): threading.Thread(target=watch, daemon=True).start()
        watch()
print("ready", flush=True)
for _ in range(15): os.wait()
"""


def test_programs_that_end_as_soon_as_they_are_resumed(cell, cold):
    start(cell, ENDS_AT_ONCE)
    cell.commands.run("touch /tmp/armed", user="root")
    snapshot = cell.create_snapshot()
    # For the programs, more than a second has passed when a copy begins.
    time.sleep(1.2)
    try:
        for _ in range(5):
            copy = Sandbox.create(snapshot.snapshot_id, **cold)
            ended = "until [ -s /tmp/result ]; do sleep 0.02; done; cat /tmp/result"
            assert copy.commands.run(ended, user="root", timeout=20).stdout == "0\n"
            copy.kill()
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id, **cold)


@pytest.mark.parametrize("name", WORKS)
def test_programs_work_on_in_original_and_copies(cell, cold, name):
    start(cell, WORKS[name])
    fork = forked(cell, cold)
    try:
        check(cell)
        fork.pause()
        fork.connect()
        check(fork)
    finally:
        fork.kill()


def test_names_for_deleted_files_are_gone_after_a_reboot(cell):
    start(cell, HARD_LINKED)
    cell.pause()
    cell.connect(on_resume="reboot")
    names = set(cell.commands.run("ls /tmp", user="root").stdout.split())
    assert {"cache", "lib.so"} <= names and not any("remap" in name for name in names), names


def test_more_mappings_than_can_be_restored_are_refused_at_the_capture(cell):
    start(cell, SHARED.replace("{count}", "30000"))
    with pytest.raises(SandboxException, match="more than [0-9]+ shared memory mappings"):
        cell.pause()
    check(cell)


def test_a_pause_opens_few_files_at_once(cold_server, cell):
    """The image of a sandbox with many shared mappings has as many files."""
    start(cell, SHARED.replace("{count}", "5000"))
    most, done = 0, threading.Event()

    def count():
        nonlocal most
        while not done.wait(0.002):
            most = max(most, len(os.listdir(f"/proc/{cold_server.process.pid}/fd")))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        cell.pause()
    finally:
        done.set()
        counter.join()
    assert most < 1000, most
    cell.connect()
    check(cell)


LONG_PATHS = """
os.chdir("/tmp")
for _ in range(15):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
with open("f", "wb") as new: new.write(b"x" * 8192)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
mapped = os.open("f", os.O_RDONLY)
# Neighbours of different offsets stay apart.
for number in range(30000):
    assert libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, mapped, 4096 * (number % 2)) not in (None, 2**64 - 1)
child = -1
for _ in range(4):
    child = os.fork()
    if child == 0: break
files = [os.open("f", os.O_RDONLY) for _ in range(8000)]
if child == 0:
    open(f"/tmp/opened-{os.getpid()}", "w").close()
    signal.pause()
import glob
while len(glob.glob("/tmp/opened-*")) < 4: time.sleep(0.02)
wait()
assert os.read(files[-1], 1) == b"x"
"""


def test_a_guest_does_not_decide_how_much_memory_a_capture_takes(cold_server, cell):
    """Paths of open and mapped files, 4 KB each: the image and /proc have hundreds of megabytes of them, the server has one at a time."""
    start(cell, LONG_PATHS)
    process = pathlib.Path(f"/proc/{cold_server.process.pid}")
    (process / "clear_refs").write_text("5")  # The peak begins anew.

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())[1]) >> 10

    before = peak()
    cell.pause()
    assert peak() - before < 64, (before, peak())
    cell.connect()
    check(cell)


# What a copy has not any more; the original keeps all of it. As docs/criu.md says.
LOST = {
    "datagrams": """
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 7001))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 7001))
wait()
receiver.setblocking(False)
try:
    assert receiver.recv(10) == b"x"
except BlockingIOError:
    raise AssertionError("lost") from None
""",
    "inotify events": """
watch = must(libc.inotify_init1(os.O_NONBLOCK))
file = open("/tmp/watched", "w")
must(libc.inotify_add_watch(watch, b"/tmp/watched", 2))
file.write("x"); file.flush()
wait()
try:
    assert os.read(watch, 1000)
except BlockingIOError:
    raise AssertionError("lost") from None
""",
    "TCP Fast Open": """
FASTOPEN = 23
listener = socket.socket()
listener.setsockopt(socket.IPPROTO_TCP, FASTOPEN, 5)
listener.bind(("127.0.0.1", 7001))
listener.listen()
wait()
assert listener.getsockopt(socket.IPPROTO_TCP, FASTOPEN) == 5, "lost"
""",
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_copy_loses(cell, cold, name):
    start(cell, LOST[name])
    fork = forked(cell, cold)
    try:
        check(cell)
        with pytest.raises(AssertionError, match="AssertionError: lost"):
            check(fork)
    finally:
        fork.kill()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_named(cold_server, cell, cold, name):
    program, reason = REFUSED[name]
    start(cell, program)
    for call in (cell.pause, cell.fork, cell.create_snapshot):
        with pytest.raises(SandboxException) as refused:
            call()
        text = str(refused.value)
        assert reason in text and "python3" in text and "memory: false" in text and "microvm" in text, text
        assert "criu" not in text.lower(), text
    pids = cell.commands.run("pgrep -x python3", user="root").stdout.split()
    assert any(f"(process {pid})" in text for pid in pids), (pids, text)
    status, _, body = cold_server.call("POST", f"/sandboxes/{cell.sandbox_id}/pause", {})
    assert (status, body["error_code"]) == (422, "sandbox_not_capturable"), body
    check(cell)
