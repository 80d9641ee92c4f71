"""Templates and the code interpreter, measured through the official SDKs against a server that is told by E2B's variables.

    E2B_API_KEY=… E2B_API_URL=… E2B_SANDBOX_URL=… python bench/templates.py [data directory of the server]

`httpbin` and `code-interpreter-v1` must be built. With the data directory (and the server's own command line in COFFERDAM_BIN) it also
turns the pool off and on. Prints rows for docs/performance.md: medians, 90th percentiles, worst.
"""

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from e2b import Sandbox as Plain
from e2b import Template
from e2b_code_interpreter import Sandbox

DATA = sys.argv[1] if len(sys.argv) > 1 else None
PLOT = "import matplotlib.pyplot as plt, numpy as np; plt.plot(np.random.rand(100).cumsum()); plt.show()"


def timed(work):
    begun = time.perf_counter()
    result = work()
    return (time.perf_counter() - begun) * 1000, result


def row(what, times):
    times = sorted(times)
    p90 = times[min(len(times) - 1, int(len(times) * 0.9))]
    print(f"| {what} | {statistics.median(times):.1f} ms | {p90:.1f} | {times[-1]:.1f} | {len(times)} |", flush=True)


def pool(template, ready):
    if DATA:
        command = [os.environ["COFFERDAM_BIN"], "pool", "set", template, str(ready), "--data-dir", DATA]
        subprocess.run(command, check=True, capture_output=True)
        while ready:
            listed = subprocess.run([*command[:2], "list", "--data-dir", DATA], check=True, capture_output=True, text=True)
            if any(f"{ready} of {ready}" in line and template in line for line in listed.stdout.splitlines()):
                return
            time.sleep(0.1)


def creates(make, use, count, pause=0.0):
    create, first = [], []
    for _ in range(count):
        took, sandbox = timed(make)
        create.append(took)
        first.append(took + timed(lambda: use(sandbox))[0])
        sandbox.kill()
        time.sleep(pause)
    return create, first


def memory_available():
    lines = dict(line.split(":") for line in open("/proc/meminfo"))
    return int(lines["MemAvailable"].split()[0]) / 1024


print("| what | p50 | p90 | worst | n |\n|---|---|---|---|---|")
for way, ready in (("memory image", 0), ("pool", 8)):
    pool("httpbin", ready)
    make = lambda: Plain.create("httpbin")
    create, first = creates(make, lambda s: s.commands.run("curl -sf localhost:8080/status/204"), 8, 0.5)
    row(f"httpbin: create to ready, {way}", create)
pool("httpbin", 0)
for way, ready in (("memory image", 0), ("pool", 4)):
    pool("code-interpreter-v1", ready)
    create, first = creates(Sandbox.create, lambda s: s.run_code("1+1"), 8, 1.5)
    row(f"code interpreter: create, {way}", create)
    row(f"code interpreter: create to the first 1+1, {way}", first)
pool("code-interpreter-v1", 0)
sandbox = Sandbox.create(timeout=600)
sandbox.run_code("1+1")
row("run_code('1+1'), live context", [timed(lambda: sandbox.run_code("1+1"))[0] for _ in range(200)])
row("new context and its first result", [timed(lambda: sandbox.run_code("1", context=sandbox.create_code_context()))[0] for _ in range(10)])
sandbox.kill()
before = memory_available()
many = [Sandbox.create(timeout=600) for _ in range(10)]
print(f"| memory each (MemAvailable), 10 alive, pandas imported in the zygote | {(before - memory_available()) / 10:.0f} MiB | | | |")
for sandbox in many:
    sandbox.kill()
with ThreadPoolExecutor(20) as threads:
    def one(_):
        own = Sandbox.create(timeout=600)
        result = own.run_code(PLOT)
        own.kill()
        return bool(result.results and result.results[0].png)
    took, done = timed(lambda: list(threads.map(one, range(20))))
    print(f"| 20 sandboxes created, each a plot, at once | {took:.0f} ms | | | {sum(done)} of 20 |")
steps = lambda: Template().from_base_image().run_cmd("echo a > /tmp/a").run_cmd("pip --version > /tmp/b")
name = f"bench-{os.getpid()}"
print(f"| a template of two small steps, cold | {timed(lambda: Template.build(steps(), name))[0]:.0f} ms | | | |")
row("the same, cached", [timed(lambda: Template.build(steps(), name))[0] for _ in range(3)])
