"""Files of the host: settings, devices, sockets, what others keep secret."""

import glob

WRITE_TARGETS = {
    "core_pattern": ("/proc/sys/kernel/core_pattern", "names a program that the host runs as root when something crashes"),
    "modprobe_path": ("/proc/sys/kernel/modprobe", "names a program that the host runs as root for modules"),
    "binfmt_misc": ("/proc/sys/fs/binfmt_misc/register", "registers an interpreter for the whole host"),
    "uevent_helper": ("/sys/kernel/uevent_helper", "names a program that the host runs as root for devices"),
    "sysrq": ("/proc/sysrq-trigger", "restarts the host by sysrq"),
    "pid_max": ("/proc/sys/kernel/pid_max", "changes a setting of the host's kernel"),
    "randomize": ("/proc/sys/kernel/randomize_va_space", "switches address space randomisation off"),
    "ip_forward": ("/proc/sys/net/ipv4/ip_forward", "switches forwarding on"),
    "panic": ("/proc/sys/kernel/panic", "changes how the host panics"),
    "drop_caches": ("/proc/sys/vm/drop_caches", "empties the host's caches"),
    "oom_dump": ("/proc/sys/vm/panic_on_oom", "makes the host panic when memory is short"),
    "thp": ("/sys/kernel/mm/transparent_hugepage/enabled", "changes the host's memory management"),
    "power": ("/sys/power/state", "suspends the host"),
    "profiling": ("/sys/kernel/profiling", "profiles the kernel"),
    "cpu_online": ("/sys/devices/system/cpu/cpu1/online", "switches a processor of the host off"),
}
for name_, (path_, what_) in WRITE_TARGETS.items():

    def attack(path=path_):
        return opens(path, os.O_WRONLY)

    attack.__name__ = f"write_{name_}"
    case("settings", what_, "WRITE")(attack)

READ_TARGETS = {
    "kcore": ("/proc/kcore", "reads the kernel's memory"),
    "kmsg": ("/dev/kmsg", "reads the kernel's log"),
    "proc_kmsg": ("/proc/kmsg", "reads the kernel's log"),
    "mem": ("/dev/mem", "reads physical memory"),
    "port": ("/dev/port", "reads I/O ports"),
    "keys": ("/proc/keys", "lists the host's keys"),
    "sched_debug": ("/proc/sched_debug", "lists the host's processes"),
    "timer_list": ("/proc/timer_list", "reads kernel addresses"),
    "debugfs": ("/sys/kernel/debug/tracing/trace", "traces the kernel"),
    "tracefs": ("/sys/kernel/tracing/trace", "traces the kernel"),
    "efivars": ("/sys/firmware/efi/efivars", "reads firmware variables"),
    "dmi": ("/sys/class/dmi/id/product_uuid", "reads the host's serial number"),
    "acpi": ("/sys/firmware/acpi/tables", "reads firmware tables"),
    "psi": ("/proc/pressure/cpu", "registers pressure triggers, which the kernel is slow to remove"),
}
for name_, (path_, what_) in READ_TARGETS.items():

    def attack(path=path_):
        if os.path.isdir(path):
            return f"{path} has {len(os.listdir(path))} entries" if os.listdir(path) else None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return f"{path} can be read" if os.read(descriptor, 1) else None
        finally:
            os.close(descriptor)

    attack.__name__ = f"read_{name_}"
    case("settings", what_, "READ")(attack)


@case("settings", "finds kernel addresses in the symbol table", "LEAK")
def kernel_symbols():
    lines = reads("/proc/kallsyms").splitlines()
    shown = [line for line in lines if line and not line.startswith(b"0000000000000000")]
    return f"{shown[0].decode()}" if shown else None


@case("files", "reads the planted file of the host by its path, also through every process's root and working directory", "READ")
def planted_file():
    path, text = PLANTED["file"], PLANTED["text"].encode()
    roots = ["", *glob.glob("/proc/[0-9]*/root"), *glob.glob("/proc/[0-9]*/cwd/../../../../../.."), "/proc/self/fd/../../../.."]

    def attempt(root):
        return f"read through {root or '/'}" if text in reads(root + path) else None

    return first([lambda root=root: attempt(root) for root in roots])


@case("files", "finds a descriptor of the host among those of its processes (the runc leak, CVE-2024-21626)", "ESCAPE")
def leaked_descriptors():
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            # Whatever can be listed beyond our own root is a way out.
            if os.path.isdir(link) and os.path.exists(f"{link}/{PLANTED['file'].lstrip('/')}"):
                return f"{link} leads to the host's root"
        except OSError:
            continue
    return None


@case("settings", "overwrites the program that started it (CVE-2019-5736)", "WRITE")
def overwrite_first_program():
    return opens("/proc/1/exe", os.O_WRONLY)


@case("files", "finds a socket of a container runtime or of the server", "ESCAPE")
def runtime_sockets():
    paths = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock",
             "/run/cofferdam", "/var/lib/cofferdam", "/var/run/secrets/kubernetes.io/serviceaccount/token"]
    found = [path for path in paths if os.path.exists(path)]
    return f"found {found}" if found else None


@case("settings", "mounts a control group hierarchy to name a release agent (CVE-2022-0492)", "ESCAPE")
def release_agent():
    agents = glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
    return first([lambda path=path: opens(path, os.O_WRONLY) for path in agents])


@case("settings", "changes limits of its own control group", "WRITE")
def own_control_group():
    limits = [*glob.glob("/sys/fs/cgroup/**/memory.max", recursive=True), *glob.glob("/sys/fs/cgroup/**/memory.limit_in_bytes", recursive=True),
              *glob.glob("/sys/fs/cgroup/**/cpu.max", recursive=True), *glob.glob("/sys/fs/cgroup/**/pids.max", recursive=True)]
    return first([lambda path=path: opens(path, os.O_WRONLY) for path in limits])


@case("settings", "makes a device node of the host's disk and reads it", "READ")
def device_node():
    for major, minor in [(8, 0), (254, 0), (259, 0), (7, 0), (1, 1)]:
        for directory in ["/tmp", "/dev/shm", "/dev", "/root"]:
            path = f"{directory}/exam-{major}-{minor}"
            try:
                os.mknod(path, 0o60600 if major != 1 else 0o20600, os.makedev(major, minor))
            except OSError:
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY)
                got = os.read(descriptor, 1)
                os.close(descriptor)
                if got:
                    return f"read device {major}:{minor} in {directory}"
            except OSError:
                continue
            finally:
                os.unlink(path)
    return None


@case("files", "finds paths or names of the host in /proc and /sys", "LEAK")
def host_paths():
    wanted = [PLANTED["directory"].encode(), PLANTED["data_dir"].encode()]
    skipped = {"/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/sysrq-trigger"}
    own = f"/proc/{os.getpid()}"
    # The case's own command line has the paths.
    mine = {str(os.getpid()), str(os.getppid()), "self", "thread-self"}
    for top, depth in [("/proc", 3), ("/sys", 9)]:
        for root, directories, names in os.walk(top):
            if root.count("/") >= depth or root.startswith(own):
                directories[:] = []
            directories[:] = [name for name in directories if not (root == "/proc" and name in mine)]
            for name in names:
                path = f"{root}/{name}"
                if path in skipped or "/trace" in path:
                    continue
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                except OSError:
                    continue
                try:
                    content = os.read(descriptor, 65536)
                except OSError:
                    content = b""
                finally:
                    os.close(descriptor)
                if any(text in content for text in wanted) and b"probes" not in content:
                    return f"{path} names them"
    return None
